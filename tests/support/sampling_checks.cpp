// Checks of accept_drafts and sample_drafts on the CPU and, by the launches of a GPU, on sim; and
// of the random numbers. See checks.cpp.
#include "base/philox.h"
#include "ops/accept_drafts/body.h"
#include "ops/sample_drafts/body.h"
#include "targets.h"
#include "tile/cpu/scan.h"
#include "tile/sim/scan.h"

namespace blockdraft {
namespace {

// Every wave of `groups` groups of sim calls body(crew, group, own); own: so many bytes that the
// waves of a group share.
template <class Crew = sim::Crew, class Body>
void with_crews(int64_t groups, int bytes, uint64_t seed, int dropped, Body body) {
  struct Memory {
    sim::CrewMemory crew;
    std::vector<double> own;
  };
  sim::Scheduler(seed, dropped)
      .run(
          groups, [=] { return Memory{{}, std::vector<double>(bytes / sizeof(double) + 1)}; },
          [&](const sim::Wave& wave, Memory& memory, int64_t group) {
            Crew crew(wave, memory.crew);
            body(crew, group, reinterpret_cast<char*>(memory.own.data()));
          });
}

template <class T>
void accept_on_sim(const AcceptParams<T>& p, uint64_t seed, int dropped) {
  schedule(p, [&]<AcceptStep kStep>(int64_t groups) {
    with_crews(groups, own_bytes<T>(kStep), seed, dropped,
               [&](sim::Crew& crew, int64_t group, char* own) {
                 accept_step<kStep>(crew, p, group, own);
               });
  });
}

template <class Crew, class T>
void sample_on_sim(const SampleParams<T>& p, uint64_t seed, int dropped) {
  const int blocks = p.vocabulary().blocks;
  schedule(p, [&]<SampleStep kStep>(int64_t groups) {
    const int blocks_of_row = kStep == SampleStep::kMeasure ? blocks : 1;
    with_crews<Crew>(groups, 0, seed, dropped, [&](Crew& crew, int64_t group, char*) {
      const int row = int(group / blocks_of_row);
      double* const own = p.workspace.at(row / p.drafts, row % p.drafts);
      const auto memory = RowsMemory<T>::staged(own, p.workspace.stride[1], blocks);
      DraftRow<Crew, T>(crew, p, row, memory).template step<kStep>(int(group % blocks_of_row));
    });
  });
}

}  // namespace
}  // namespace blockdraft

using namespace blockdraft;

extern "C" {

void check_accept_drafts(int target, int type, const void* params, uint64_t seed, int dropped) {
  with_type(type, [&]<class T>(T) {
    const auto& p = *static_cast<const AcceptParams<T>*>(params);
    if (target == 0) return launch(p, two_threads());
    accept_on_sim(p, seed, dropped);
  });
}

void check_sample_drafts(int target, int type, const void* params, uint64_t seed, int dropped) {
  with_type(type, [&]<class T>(T) {
    const auto& p = *static_cast<const SampleParams<T>*>(params);
    if (target == 0) return launch(p, two_threads());
    sample_on_sim<sim::Crew>(p, seed, dropped);
  });
}

// By crews that hold 2048 logits. Returns how often they scanned rows.
int check_readings(int type, const void* params) {
  sim::scans = 0;
  with_type(type, [&]<class T>(T) {
    sample_on_sim<sim::CrewOf<2048>>(*static_cast<const SampleParams<T>*>(params), 1, -1);
  });
  return sim::scans;
}

int schedule_accept_drafts(const void* params, int, int64_t* out) {
  Launches launches{out};
  schedule(*static_cast<const AcceptParams<float>*>(params),
           [&]<AcceptStep kStep>(int64_t groups) { launches.operator()<kStep>(groups); });
  return launches.count;
}

int schedule_sample_drafts(const void* params, int, int64_t* out) {
  Launches launches{out};
  schedule(*static_cast<const SampleParams<float>*>(params),
           [&]<SampleStep kStep>(int64_t groups) { launches.operator()<kStep>(groups); });
  return launches.count;
}

void check_philox(const uint32_t* counter, const uint32_t* key, uint32_t* out) {
  const Philox x(counter[0], counter[1], counter[2], counter[3], key[0], key[1]);
  for (int i = 0; i < 4; ++i) out[i] = x.word[i];
}

double check_uniform(int64_t seed, int32_t position, int row, int purpose) {
  return uniform(seed, position, row, Purpose(purpose));
}

// The CPU's exponentials, by `kind`: 2^x, 2^(x * scale), and 2^(x * scale) for a scale that is a
// float. n is a multiple of 16.
void check_exp2(int kind, double scale, const float* x, float* out, int n) {
  auto of = [&](auto at, cpu::wide in) {
    if constexpr (cpu::Scan::kProducts)
      if (kind == 2) return at.exp2_product(in, float(scale));
    return kind ? at.exp2(in, scale) : at.exp2(in);
  };
  for (int i = 0; i < n; i += cpu::kWide)
    cpu::store_wide(out + i, of(cpu::Lanes(), cpu::load_wide(x + i)));
}

}  // extern "C"
