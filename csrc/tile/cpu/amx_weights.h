// Panels of weights for a CPU's matrix unit, 32 elements of the depth at a time: of bf16, which are
// read where they lie; of codes with scales, which are decoded to bf16.
//
//   pair(p)                        which pair of a step's elements has place p
//   open(weight, i, rows, depth)   channels i .. i + 31, of which those from `rows` on are any
//   begin(half, halves)            both halves of them, or one; step(k) then counts from k = 0
//   step(k)                        their elements from k on, zeros beyond the depth
//   after(k)                       the step is read
//   add(sums, tiles, product)      sums[half][tile][channel][token] := the sum of
//                                  product(start, end, out), each of which has a part of the depth
#pragma once

#ifdef __AVX512F__
#include "tile/cpu/amx.h"
#include "tile/cpu/amx_decode.h"

namespace blockdraft::cpu {

// Steps that are made in memory, some at once: a chunk, for which a channel's codes are loaded
// together. A tile is not loaded from stores on their way to the L1, so a chunk is made while the
// one before it is multiplied, a few channels with each step, and the last step makes none.
class PanelRing {
  static constexpr int kTile = MatrixUnit::kTile, kStep = MatrixUnit::kStep;

 public:
  static constexpr int kSteps = 4;
  static constexpr int kChunk = kSteps * kStep;

  WeightPanel at(int k) const {
    const int step = unsigned(k) / kStep % (2 * kSteps);
    return {memory_[0][step], memory_[kTile][step], 2 * kChunk};
  }
  // make(i, k, out): out[kSteps] := channel i of the panel from k on. In order: begin, and after(k)
  // for each step.
  template <class Make>
  void begin(int channels, int depth, Make make) {
    channels_ = channels;
    depth_ = depth;
    for (int part = 0; part < kSteps; ++part) fill(0, part, make);
    if (kChunk < depth_) fill(kChunk, 0, make);
  }
  template <class Make>
  __attribute__((always_inline)) void after(int k, Make make) {
    const int next = unsigned(k) / kStep + 1, start = (unsigned(next) / kSteps + 1) * kChunk;
    if (start < depth_) fill(start, unsigned(next) % kSteps, make);
  }

 private:
  template <class Make>
  __attribute__((always_inline)) void fill(int start, int part, Make make) {
    const int count = channels_ / kSteps;
    const int step = unsigned(start) / kStep % (2 * kSteps);
    for (int i = part * count; i < (part + 1) * count; ++i) {
      __m512i made[kSteps];
      make(i, start, made);
#pragma GCC unroll 4
      for (int s = 0; s < kSteps; ++s) _mm512_store_si512(memory_[i][step + s], made[s]);
    }
  }

  int channels_, depth_;
  // Two chunks that take turns along each row: a load waits for a store before it to the same place
  // in another page of 4 KiB, and so there is none.
  alignas(64) bf16 memory_[MatrixUnit::kPanel][2 * kSteps][kStep];
};

// A panel's channels: its even ones, then its odd ones.
constexpr int panel_channel(int i) { return i % MatrixUnit::kTile * 2 + i / MatrixUnit::kTile; }

class PlainPanels {
  static constexpr int kTile = MatrixUnit::kTile, kPanel = MatrixUnit::kPanel;

  auto make() const {
    return [this](int i, int k, __m512i* out) {
      for (int s = 0; s < PanelRing::kSteps; ++s, k += MatrixUnit::kStep)
        out[s] = _mm512_maskz_loadu_epi16(uint32_t(bits_below(depth_ - k)), own_[i] + k);
    };
  }

 public:
  static constexpr int pair(int p) { return p; }

  template <class Weight>
  void open(Weight weight, int i, int rows, int depth) {
    for (int j = 0; j < kPanel; ++j) rows_[j] = weight(least(i + panel_channel(j), rows - 1));
    depth_ = depth;
    stride_ = rows_[1] - rows_[0];
    even_ = depth % MatrixUnit::kStep == 0;
    for (int j = 1; j < kPanel; ++j) even_ &= j == kTile || rows_[j] - rows_[j - 1] == stride_;
  }
  void begin(int half, int halves) {
    own_ = rows_ + half * kTile;
    second_ = own_[(halves - 1) * kTile];
    if (!even_) ring_.begin(halves * kTile, depth_, make());
  }
  __attribute__((always_inline)) WeightPanel step(int k) const {
    return even_ ? WeightPanel{own_[0] + k, second_ + k, stride_} : ring_.at(k);
  }
  __attribute__((always_inline)) void after(int k) {
    if (!even_) ring_.after(k, make());
  }
  template <class Product>
  void add(float* sums, int, Product product) {
    product(0, depth_, sums);
  }

 private:
  const bf16* rows_[kPanel];
  const bf16* const* own_;
  const bf16* second_;
  int64_t stride_;
  int depth_;
  bool even_;  // whether rows are equally far from each other, in each half
  PanelRing ring_;
};

template <class W>
class ScaledPanels {
  static constexpr int kTile = MatrixUnit::kTile, kPanel = MatrixUnit::kPanel;
  static constexpr int kStep = MatrixUnit::kStep, kSums = MatrixUnit::kSums;
  typedef Format<W> Layout;
  static constexpr bool kPowers = std::is_same_v<typename Layout::Scale, e8m0>;
  static_assert(kPowers ? Layout::kDepth == kStep : Layout::kDepth == PanelRing::kChunk);

  // A chunk's codes into the L2: at an even pace, so that the chunk at hand does not wait behind
  // them. The hardware itself fetches ahead in few rows of a page. Inlined, because gcc drops calls
  // of a function that does nothing but prefetch.
  [[gnu::always_inline]] static void fetch(const W* codes, int k) {
    constexpr int kBytes = PanelRing::kChunk / Layout::kPerByte;
    for (int byte = 0; byte < kBytes; byte += 64)
      __builtin_prefetch(codes + k / Layout::kPerByte + byte, 0, 2);
  }
  auto make() const {
    return [decode = decoder_.loaded(), codes = codes_ + first_, next = next_ + first_,
            exponents = exponents_.data() + first_ * steps_, steps = steps_,
            depth = depth_](int i, int k, __m512i* out) __attribute__((always_inline)) {
      fetch(next[i], k);
      decode(codes[i] + k / Layout::kPerByte, depth - k, exponents + i * steps + k / kStep, out);
    };
  }

 public:
  static constexpr int pair(int p) { return ChunkDecoder<W>::pair(p); }

  // Whether no number comes near the ends of fp32's range by its scale.
  template <class Weight>
  static bool fits(Weight weight, int rows, int depth) {
    const int count = ceil_div(depth, Layout::kDepth);
    for (int i = 0; i < rows; ++i)
      if (!ordinary(weight(i).scales, count)) return false;
    return true;
  }

  template <class Weight>
  void open(Weight weight, int i, int rows, int depth) {
    depth_ = depth;
    steps_ = ceil_div(depth, PanelRing::kChunk) * PanelRing::kSteps;
    if (kPowers) exponents_.resize(kPanel * steps_);
    for (int j = 0; j < kPanel; ++j) {
      const ScaledRow<W> row = weight(least(i + panel_channel(j), rows - 1));
      codes_[j] = row.codes;
      scales_[j] = row.scales;
      next_[j] = weight(least(i + panel_channel(j) + kPanel, rows - 1)).codes;
      if constexpr (kPowers)
        decoder_.exponents(row.scales, ceil_div(depth, kStep), exponents_.data() + j * steps_);
    }
    if (i == 0)
      for (int j = 0; j < kPanel; ++j)
        for (int k = 0; k < depth; k += PanelRing::kChunk) fetch(codes_[j], k);
  }
  void begin(int half, int halves) {
    first_ = half * kTile;
    count_ = halves * kTile;
    ring_.begin(count_, depth_, make());
  }
  __attribute__((always_inline)) WeightPanel step(int k) const { return ring_.at(k); }
  __attribute__((always_inline)) void after(int k) { ring_.after(k, make()); }
  template <class Product>
  void add(float* sums, int tiles, Product product) {
    if constexpr (kPowers) return product(0, depth_, sums);
    // A block's sums are added while the next block is multiplied: loads would wait for them.
    // Columns that a tile does not have stay zeros: arithmetic on subnormal numbers is slow.
    alignas(64) float parts[2][MatrixUnit::kTiles * kSums];
    const int count = count_ / kTile * tiles * kSums;
    for (float* memory : {sums, parts[0], parts[1]}) std::fill_n(memory, count, 0.0f);
    const int blocks = ceil_div(depth_, Layout::kDepth);
    for (int block = 0; block <= blocks; ++block) {
      const int k = block * Layout::kDepth;
      if (block < blocks) product(k, least(k + Layout::kDepth, depth_), parts[block % 2]);
      if (block > 0) add_scaled(parts[(block - 1) % 2], block - 1, tiles, sums);
    }
  }

 private:
  void add_scaled(const float* part, int block, int tiles, float* sums) const {
    for (int half = first_ / kTile; half < (first_ + count_) / kTile; ++half)
      for (int tile = 0; tile < tiles; ++tile)
        for (int j = 0; j < kTile; ++j, part += kTile, sums += kTile) {
          const __m512 scale = _mm512_set1_ps(decoded(scales_[half * kTile + j][block]));
          _mm512_store_ps(sums, _mm512_fmadd_ps(_mm512_load_ps(part), scale, _mm512_load_ps(sums)));
        }
  }
  static bool ordinary(const e8m0* scales, int count) {
    __mmask64 large = 0;  // or small
    for (int k = 0; k < count; k += 64) {
      const __mmask64 mask = bits_below(count - k);
      const __m512i above =
          _mm512_sub_epi8(_mm512_maskz_loadu_epi8(mask, scales + k), _mm512_set1_epi8(63));
      large |= _mm512_mask_cmpgt_epu8_mask(mask, above, _mm512_set1_epi8(127));
    }
    return !large;
  }
  static bool ordinary(const float* scales, int count) {
    bool found = true;
    for (int k = 0; k < count; ++k) {
      const float size = __builtin_fabsf(scales[k]);
      found &= size == 0 || (size > 0x1p-64f && size < 0x1p64f);
    }
    return found;
  }

  const W *codes_[kPanel], *next_[kPanel];  // of this panel and of the next one
  const typename Layout::Scale* scales_[kPanel];
  int depth_, steps_;                // of a row of exponents, whole chunks
  int first_, count_;                // channels
  std::vector<uint32_t> exponents_;  // [channel][step]
  ChunkDecoder<W> decoder_;
  PanelRing ring_;
};

}  // namespace blockdraft::cpu
#endif
