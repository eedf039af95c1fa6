// The products of CDNA 3 and 4, by 16x16 MFMAs. The weights are the A operand and are loaded
// directly into registers, since no other wave reads them; the tokens are the B operand. SplitGemm
// and Gemm have the same bits: the depth has kParts parts, whose sums are added in their order.
//
// SplitGemm is for few columns, where the time is that of reading the weights. A group has 16
// channels, of weights with scales 32, and each wave one part of the depth, all of whose weights it
// asks for at once.
// Gemm is for many. A wave has kRowTiles * 16 channels and all columns; the tokens are staged in
// LDS, in two buffers, with one barrier for each stage of the depth. Weights are loaded two stages
// ahead. LayerGemm is for layers that follow each other in one group, with tokens in LDS, in T or
// in fp32.
#pragma once

#include "tile/cdna/group.h"
#include "tile/cdna/mfma.h"
#include "tile/cdna/weights.h"
#include "tile/gemm.h"

namespace blockdraft::cdna {

template <class T, class W = T>
struct GemmDepth {
  typedef typename Mma<T>::Fragment Fragment;
  static constexpr int kParts = 8;
  static constexpr int kEpilogueRows = 4;           // that a lane has of a tile
  static constexpr int kFragment = 16 / sizeof(T);  // elements that a lane loads at once
  static constexpr int kStep = 4 * kFragment;       // depth of the fragments of a wave
  static constexpr int kSteps = 4;                  // of a stage
  static constexpr int kStage = kSteps * kStep;
  typedef HeldWeights<T, W, kSteps> Held;  // a lane's weights of a stage
  static constexpr int kRun = Held::kRun;  // elements of a row that a lane loads at once

  static int lane() { return thread_index() & (kWave - 1); }
  static int wave() { return __builtin_amdgcn_readfirstlane(thread_index() / kWave); }
  static int stages_of_part(int depth) { return ceil_div(depth, kParts * kStage); }

  // Where this lane's fragment of a step begins.
  static int at(int step) {
    constexpr int kSteps = kRun / kFragment;  // of a run
    return step / kSteps * 4 * kRun + lane() / 16 * kRun + step % kSteps * kFragment;
  }
  // kWhole: the stage is within the row.
  template <bool kWhole = false, class Row>
  static Held held(const Row& row, int stage, int depth) {
    Held out;
    out.template load<kWhole>(row, at(stage * kSteps), depth);
    return out;
  }

  // The fragment at k of a row, or of its begin, if k is beyond the depth: then `within` makes it
  // zeros, when it is needed. Loads have no branches around them, which would keep the next ones
  // waiting.
  template <bool kWhole = false>
  static Fragment load(const T* row, int k, int depth) {
    typedef const __attribute__((address_space(1))) Fragment Global;
    return *(Global*)(row + (kWhole || k < depth ? k : 0));
  }
  template <bool kWhole = false>
  static Fragment within(Fragment x, int k, int depth) {
    return kWhole || k < depth ? x : Fragment{};
  }
  // The epilogue of a lane's sums, of 4 channels of a tile from `first` and a column of a panel.
  template <class Epilogue>
  static void finish(acc4 total, int first, int panel, int rows, int columns, Epilogue epilogue) {
    const int row = first + lane() / 16 * 4, c = panel * 16 + lane() % 16;
    four y;
#pragma unroll
    for (int j = 0; j < kEpilogueRows; ++j) y[j] = row + j < rows ? total[j] : 0.0f;
    if (c < columns && row < rows) epilogue(row, c, y);
  }
};

template <class T, class W = T>
class SplitGemm : public Group<kThreads> {
  typedef GemmDepth<T, W> Depth;
  typedef typename Depth::Fragment Fragment;
  static constexpr int kStages = 2;  // whose weights are in registers
  static constexpr int kRowTiles = Format<W>::kScaled ? 2 : 1, kPanels = 2;
  static_assert(Depth::kParts == kWaves);

 public:
  static constexpr int kRows = kRowTiles * 16, kGroupColumns = kPanels * 16;
  static constexpr int kWavesOfSimd = 4;  // that registers should be for
  static constexpr int kEpilogueRows = Depth::kEpilogueRows;

  struct Memory {                                       // in LDS
    acc4 sums[kRowTiles * kPanels][kWaves - 1][kWave];  // one wave keeps its own
  };

  explicit SplitGemm(Memory& memory) : memory_(memory) {}

  template <class Weight, class Column, class Epilogue>
  void multiply(int rows, int columns, int depth, Weight weight, Column column, Epilogue epilogue) {
    const int lane = Depth::lane(), part = Depth::wave(), panels = ceil_div(columns, 16);
    decltype(weight(0)) own[kRowTiles];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) own[r] = weight(least(r * 16 + lane % 16, rows - 1));
    const T* tokens[kPanels];  // beyond the last: its, for sums that nobody reads
#pragma unroll
    for (int p = 0; p < kPanels; ++p) tokens[p] = column(least(p * 16 + lane % 16, columns - 1));
    acc4 sums[kPanels][kRowTiles] = {};
    const int stages = Depth::stages_of_part(depth), end = (part + 1) * stages;
    int stage = part * stages;
    const int whole = least(end, depth / Depth::kStage);
    for (; stage + kStages <= whole; stage += kStages)
      add_stages<kStages, true>(own, tokens, stage, depth, panels, sums);
    for (; stage < end; ++stage) add_stages<1, false>(own, tokens, stage, depth, panels, sums);
    const int tile = part;  // that this wave finishes
    acc4 kept = {};
#pragma unroll
    for (int p = 0; p < kPanels; ++p)
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        const int t = p * kRowTiles + r;
        if (t == tile)
          kept = sums[p][r];
        else
          memory_.sums[t][part - (part > t)][lane] = sums[p][r];
      }
    barrier();
    if (tile >= panels * kRowTiles) return;
    acc4 others[kWaves - 1], total = {};
#pragma unroll
    for (int i = 0; i < kWaves - 1; ++i) others[i] = memory_.sums[tile][i][lane];
#pragma unroll
    for (int w = 0; w < kWaves; ++w) {
      const acc4 before = others[most(w - 1, 0)], after = others[least(w, kWaves - 2)];
      total += w == part ? kept : w > part ? before : after;
    }
    Depth::finish(total, tile % kRowTiles * 16, tile / kRowTiles, rows, columns, epilogue);
  }

 private:
  // The products of the stages from `stage` on, all of whose weights are asked for first.
  template <int kCount, bool kWhole, class Row>
  static void add_stages(const Row (&own)[kRowTiles], const T* const (&tokens)[kPanels], int stage,
                         int depth, int panels, acc4 (&sums)[kPanels][kRowTiles]) {
    constexpr int kSteps = Depth::kSteps;
    typename Depth::Held weights[kRowTiles][kCount];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        weights[r][i] = Depth::template held<kWhole>(own[r], stage + i, depth);
#pragma unroll
    for (int p = 0; p < kPanels; ++p) {
      if (p >= panels) break;
      Fragment token[kCount * kSteps];
#pragma unroll
      for (int s = 0; s < kCount * kSteps; ++s)
        token[s] = Depth::template load<kWhole>(tokens[p], Depth::at(stage * kSteps + s), depth);
      __builtin_amdgcn_sched_barrier(0);  // all is asked for before anything is waited for
#pragma unroll
      for (int i = 0; i < kRowTiles * kCount; ++i) {
        auto& held = weights[i / kCount][i % kCount];
        if (p == 0)
          held.template settle<kWhole>();
        else
          held.forget();
      }
#pragma unroll
      for (int s = 0; s < kCount * kSteps; ++s) {
        const int k = Depth::at(stage * kSteps + s);
        const Fragment x = Depth::template within<kWhole>(token[s], k, depth);
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r)
          sums[p][r] = Mma<T>::multiply(weights[r][s / kSteps].fragment(s % kSteps), x, sums[p][r]);
      }
    }
  }

  Memory& memory_;
};

template <class T, int kRowTiles, class W = T>
class Gemm : public Group<kThreads> {
  typedef GemmDepth<T, W> Depth;
  typedef typename Depth::Fragment Fragment;
  typedef typename Depth::Held Held;
  static constexpr int kPanels = 4, kSteps = Depth::kSteps;
  static constexpr int kFragment = Depth::kFragment, kStage = Depth::kStage;
  static constexpr int kStride = kStage + kFragment;  // padded: columns begin in different banks
  static constexpr int kUnits = kPanels * 16 * (kStage / kFragment);  // fragments to stage
  static constexpr int kUnitsOfThread = kUnits / kThreads;
  static_assert(kUnits % kThreads == 0);

 public:
  static constexpr int kRows = kWaves * kRowTiles * 16, kGroupColumns = kPanels * 16;
  static constexpr int kWavesOfSimd = kRowTiles == 1 ? 4 : 2;  // that registers should be for
  static constexpr int kEpilogueRows = Depth::kEpilogueRows;

  struct Memory {  // in LDS
    alignas(16) T tokens[2][kGroupColumns * kStride];
  };

  explicit Gemm(Memory& memory) : memory_(memory) {}

  template <class Weight, class Column, class Epilogue>
  void multiply(int rows, int columns, int depth, Weight weight, Column column, Epilogue epilogue) {
    const int first = Depth::wave() * kRowTiles * 16, lane = Depth::lane();
    decltype(weight(0)) own[kRowTiles];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
      own[r] = weight(least(first + r * 16 + lane % 16, rows - 1));
    const T* token[kUnitsOfThread];  // the row that a unit is of
#pragma unroll
    for (int u = 0; u < kUnitsOfThread; ++u) {
      const int c = (thread_index() + u * kThreads) / (kStage / kFragment);
      token[u] = column(least(c, columns - 1));
    }
    Held weights[2][kRowTiles];
    Fragment tokens[kUnitsOfThread];
    acc4 sums[kRowTiles][kPanels] = {}, totals[kRowTiles][kPanels] = {};
    load_weights(own, 0, depth, weights[0]);
    load_tokens(token, 0, depth, tokens);
    load_weights(own, 1, depth, weights[1]);
    const int of_part = Depth::stages_of_part(depth), stages = ceil_div(depth, kStage);
    const int panels = ceil_div(columns, 16);
    int left = of_part;  // stages of the present part
    for (int stage = 0; stage < stages; stage += 2) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        stage_tokens(tokens, memory_.tokens[half]);
        load_tokens(token, stage + half + 1, depth, tokens);
        barrier();
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) weights[half][r].template settle<false>();
        absorb(memory_.tokens[half], panels, weights[half], sums);
        load_weights(own, stage + half + 2, depth, weights[half]);
        if (--left == 0) {
          left = of_part;
#pragma unroll
          for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
            for (int p = 0; p < kPanels; ++p) {
              totals[r][p] += sums[r][p];
              sums[r][p] = acc4{};
            }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int p = 0; p < kPanels; ++p) {
        const acc4 total = totals[r][p] + sums[r][p];
        Depth::finish(total, first + r * 16, p, rows, columns, epilogue);
      }
  }

 private:
  template <class Row>
  static void load_weights(const Row (&own)[kRowTiles], int stage, int depth,
                           Held (&out)[kRowTiles]) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) out[r] = Depth::held(own[r], stage, depth);
  }

  static int unit_at(int unit) { return unit % (kStage / kFragment) * kFragment; }

  static void load_tokens(const T* const (&token)[kUnitsOfThread], int stage, int depth,
                          Fragment (&out)[kUnitsOfThread]) {
#pragma unroll
    for (int u = 0; u < kUnitsOfThread; ++u) {
      const int k = stage * kStage + unit_at(thread_index() + u * kThreads);
      out[u] = Depth::within(Depth::load(token[u], k, depth), k, depth);
    }
  }

  static void stage_tokens(const Fragment (&tokens)[kUnitsOfThread], T* out) {
#pragma unroll
    for (int u = 0; u < kUnitsOfThread; ++u) {
      const int unit = thread_index() + u * kThreads;
      const int c = unit / (kStage / kFragment);
      *reinterpret_cast<Fragment*>(out + c * kStride + unit_at(unit)) = tokens[u];
    }
  }

  static void absorb(const T* tokens, int panels, const Held (&weights)[kRowTiles],
                     acc4 (&sums)[kRowTiles][kPanels]) {
    const T* column = tokens + Depth::lane() % 16 * kStride;
    Fragment own[kRowTiles][kSteps];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int s = 0; s < kSteps; ++s) own[r][s] = weights[r].fragment(s);
#pragma unroll
    for (int p = 0; p < kPanels; ++p) {
      if (p >= panels) break;
      Fragment token[kSteps];
#pragma unroll
      for (int s = 0; s < kSteps; ++s)
        token[s] = *reinterpret_cast<const Fragment*>(column + p * 16 * kStride + Depth::at(s));
#pragma unroll
      for (int s = 0; s < kSteps; ++s)
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r)
          sums[r][p] = Mma<T>::multiply(own[r][s], token[s], sums[r][p]);
    }
  }

  Memory& memory_;
};

template <class T, int kRowTiles, int kPanels>
class LayerGemm : public Group<kThreads> {
  typedef GemmDepth<T> Depth;
  typedef typename Depth::Fragment Fragment;
  static constexpr int kSteps = 8;  // whose weights are in registers

 public:
  static constexpr int kRows = kWaves * kRowTiles * 16, kGroupColumns = kPanels * 16;
  static constexpr int kEpilogueRows = Depth::kEpilogueRows;

  template <class Weight, class Column, class Epilogue>
  void multiply(int rows, int columns, int depth, Weight weight, Column column, Epilogue epilogue) {
    typedef decltype(column(0)) Token;
    const int lane = Depth::lane() % 16, panels = ceil_div(columns, 16);
    auto row = [](int r) { return (r * kWaves + Depth::wave()) * 16; };
    Token tokens[kPanels];
#pragma unroll
    for (int p = 0; p < kPanels; ++p)
      tokens[p] = p * 16 + lane < columns ? column(p * 16 + lane) : nullptr;
    acc4 sums[kRowTiles][kPanels] = {};
    for (int first = 0; first * Depth::kStep < depth; first += kSteps) {
      Fragment weights[kRowTiles][kSteps];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        const T* own = weight(least(row(r) + lane, rows - 1));
#pragma unroll
        for (int s = 0; s < kSteps; ++s)
          weights[r][s] = Depth::load(own, Depth::at(first + s), depth);
      }
#pragma unroll
      for (int p = 0; p < kPanels; ++p) {
        if (p >= panels) break;
#pragma unroll
        for (int s = 0; s < kSteps; ++s)
          add_products(weights, s, tokens[p], Depth::at(first + s), depth, sums, p);
      }
    }
    barrier();
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int p = 0; p < kPanels; ++p)
        Depth::finish(sums[r][p], row(r), p, rows, columns, epilogue);
  }

 private:
  typedef Fragment Weights[kRowTiles][kSteps];
  typedef acc4 Sums[kRowTiles][kPanels];

  // Tokens as they are multiplied, or fp32 ones as the sum of two.
  static void add_products(const Weights& weights, int step, const T* token, int k, int depth,
                           Sums& sums, int panel) {
    Fragment x = {};
    if (token && k < depth) x = *reinterpret_cast<const Fragment*>(token + k);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
      sums[r][panel] =
          Mma<T>::multiply(Depth::within(weights[r][step], k, depth), x, sums[r][panel]);
  }
  static void add_products(const Weights& weights, int step, const float* token, int k, int depth,
                           Sums& sums, int panel)
    requires(sizeof(T) < 4)
  {
    float x[Depth::kFragment] = {};
    if (token && k < depth)
#pragma unroll
      for (int j = 0; j < Depth::kFragment; ++j) x[j] = token[k + j];
    Fragment high, low;
    Mma<T>::split(x, high, low);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      const Fragment own = Depth::within(weights[r][step], k, depth);
      sums[r][panel] = Mma<T>::multiply(own, high, sums[r][panel]);
      sums[r][panel] = Mma<T>::multiply(own, low, sums[r][panel]);
    }
  }
};

static_assert(GemmTarget<SplitGemm<bf16>, bf16>);
static_assert(GemmTarget<Gemm<bf16, 1>, bf16>);
static_assert(ScaledGemmTarget<SplitGemm<bf16, e2m1x2>, bf16, e2m1x2>);
static_assert(ScaledGemmTarget<Gemm<bf16, 1, e4m3fn>, bf16, e4m3fn>);
static_assert(GemmTarget<LayerGemm<bf16, 1, 2>, bf16>);
static_assert(GemmTarget<LayerGemm<bf16, 2, 1>, bf16, float>);

}  // namespace blockdraft::cdna
