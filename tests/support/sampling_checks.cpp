// accept_drafts and sample_drafts on the host and, step by step as on a GPU, on sim; and the random
// numbers. See checks.cpp.
#include "accept_drafts.h"
#include "philox.h"
#include "sample_drafts.h"
#include "targets.h"
#include "tile/host_scan.h"
#include "tile/sim_scan.h"

namespace blockdraft {

template <class T>
void accept_drafts_host(const AcceptParams<T>&, const Parallel&);
template <class T>
void sample_drafts_host(const SampleParams<T>&, const Parallel&);

namespace {

template <class Run>
void with_crew(double* sums, uint64_t seed, int dropped, Run run) {
  sim::Scheduler scheduler(seed, dropped);
  scheduler.run([&](int wave) {
    sim::Crew crew(scheduler, wave, sums);
    run(crew);
  });
}

template <int kStep, class T>
void accept_step(const AcceptParams<T>& p, int rows, int blocks_of_row, uint64_t seed,
                 int dropped) {
  const int blocks = Vocabulary(p.valid, p.mask_token).blocks;
  for (int item = 0; item < p.batch * rows * blocks_of_row; ++item) {
    const int request = item / (rows * blocks_of_row);
    const auto memory = AcceptMemory<T>::at(
        p.workspace + request * AcceptMemory<T>::doubles(p.drafts, blocks), p.drafts, blocks);
    with_crew(memory.sums, seed + item, dropped, [&](sim::Crew& crew) {
      Acceptance<sim::Crew, T>(crew, p, request, memory)
          .template step<kStep>(item / blocks_of_row % rows, item % blocks_of_row);
    });
  }
}

}  // namespace
}  // namespace blockdraft

using namespace blockdraft;

extern "C" {

void check_accept_drafts(int target, int type, const void* params, uint64_t seed, int dropped) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    const auto& p = *static_cast<const AcceptParams<T>*>(params);
    if (target == 0) return accept_drafts_host(p, Parallel(threads));
    const int blocks = Vocabulary(p.valid, p.mask_token).blocks, rows = 2 * p.drafts + 1;
    accept_step<0>(p, rows, blocks, seed, dropped);
    accept_step<1>(p, rows, 1, seed, dropped);
    if (p.mode == kBlock) accept_step<2>(p, p.drafts, blocks, seed, dropped);
    accept_step<3>(p, 1, 1, seed, dropped);
    accept_step<4>(p, 1, blocks, seed, dropped);
    accept_step<5>(p, 1, 1, seed, dropped);
    if (p.logprob) accept_step<6>(p, p.drafts + 1, 1, seed, dropped);
  });
}

void check_sample_drafts(int target, int type, const void* params, uint64_t seed, int dropped) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    const auto& p = *static_cast<const SampleParams<T>*>(params);
    if (target == 0) return sample_drafts_host(p, Parallel(threads));
    const int blocks = Vocabulary(p.valid, p.mask_token).blocks;
    for (int row = 0; row < p.batch * p.drafts; ++row) {
      double* memory = p.workspace + row * sample_doubles(blocks);
      auto* partials = reinterpret_cast<Partial*>(memory);
      with_crew(memory + 2 * blocks, seed + row, dropped, [&](sim::Crew& crew) {
        for (int block = 0; block < blocks; ++block)
          DraftRow<sim::Crew, T>(crew, p, row, partials).measure(block);
      });
      with_crew(memory + 2 * blocks, seed + row, dropped,
                [&](sim::Crew& crew) { DraftRow<sim::Crew, T>(crew, p, row, partials).finish(); });
    }
  });
}

void check_philox(const uint32_t* counter, const uint32_t* key, uint32_t* out) {
  const Philox x(counter[0], counter[1], counter[2], counter[3], key[0], key[1]);
  for (int i = 0; i < 4; ++i) out[i] = x.word[i];
}

double check_uniform(int64_t seed, int32_t position, int row, int purpose) {
  return uniform(seed, position, row, Purpose(purpose));
}

// The host's exponentials: 2^x, 2^(x * scale), and 2^(x * scale) of a scale that is a float. n: a
// multiple of 16.
void check_exp2(int kind, double scale, const float* x, float* out, int n) {
  auto of = [&](auto at, host::wide in) {
    if constexpr (host::Scan::kProducts)
      if (kind == 2) return at.exp2_product(in, float(scale));
    return kind ? at.exp2(in, scale) : at.exp2(in);
  };
  for (int i = 0; i < n; i += host::kWide)
    host::store_wide(out + i, of(host::Lanes(), host::load_wide(x + i)));
}

size_t accept_params_size() { return sizeof(AcceptParams<float>); }
size_t sample_params_size() { return sizeof(SampleParams<float>); }

}  // extern "C"
