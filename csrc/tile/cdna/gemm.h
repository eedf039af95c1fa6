// The product of CDNA 3 and 4. A group is a workgroup of eight waves; a wave multiplies 32 output
// channels by all columns. The weights are the A operand of 32x32 MFMAs and are loaded directly
// into registers, since no other wave reads them. The tokens of the columns are the B operand and
// are staged in LDS, in two buffers, with one barrier for each part of the depth. The weights and
// tokens of the next part are loaded while this one is multiplied.
#pragma once

#include "tile/cdna/group.h"
#include "tile/cdna/mfma.h"
#include "tile/gemm.h"

namespace blockdraft::cdna {

// A panel has 32 columns.
template <class T, int kPanels>
class Gemm : public Group<kThreads> {
  typedef typename Mma<T>::Fragment Fragment;
  static constexpr int kFragment = 16 / sizeof(T);  // elements
  static constexpr int kFragments = 4;              // of a lane in a part of the depth
  static constexpr int kDepth = kFragments * 2 * kFragment;
  static constexpr int kStride = kDepth + kFragment;  // padded: columns begin in different banks
  static constexpr int kUnits = kPanels * kColumns * (kDepth / kFragment);  // fragments to stage
  static constexpr int kUnitsOfThread = (kUnits + kThreads - 1) / kThreads;

 public:
  static constexpr int kRows = kWaves * 32, kGroupColumns = kPanels * kColumns;

  struct Memory {  // in LDS
    alignas(16) T tokens[2][kGroupColumns * kStride];
  };

  explicit Gemm(Memory& memory) : memory_(memory) {}

  template <class Weight, class Column, class Epilogue>
  void multiply(int rows, int columns, int depth, Weight weight, Column column, Epilogue epilogue) {
    const int first = uniform(thread_index() / kWave) * 32;
    const T* own = weight(least(first + lane() % 32, rows - 1));
    Fragment ahead[kFragments];
    Fragment tokens[kUnitsOfThread];
    acc16 sums[kPanels];
#pragma unroll
    for (int p = 0; p < kPanels; ++p) sums[p] = acc16{};
    load_weights(own, 0, depth, ahead);
    load_tokens(column, columns, 0, depth, tokens);
    for (int start = 0, buffer = 0; start < depth; start += kDepth, buffer ^= 1) {
      Fragment now[kFragments];
#pragma unroll
      for (int f = 0; f < kFragments; ++f) now[f] = ahead[f];
      stage(tokens, memory_.tokens[buffer]);
      load_weights(own, start + kDepth, depth, ahead);
      load_tokens(column, columns, start + kDepth, depth, tokens);
      barrier();
      if (first < rows) absorb(memory_.tokens[buffer], now, sums);
    }
    if (first < rows) finish(first, rows, columns, sums, epilogue);
  }

 private:
  static int lane() { return thread_index() & (kWave - 1); }
  static int half() { return lane() >> 5; }
  static Fragment read(const T* p) { return *(const __attribute__((address_space(1))) Fragment*)p; }

  // Fragments beyond the depth are 0; the loads for them read the first fragment instead.
  static void load_weights(const T* own, int start, int depth, Fragment (&out)[kFragments]) {
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
      const int k = start + (2 * f + half()) * kFragment;
      const Fragment x = read(own + (k < depth ? k : 0));
      out[f] = k < depth ? x : Fragment{};
    }
  }

  template <class Column>
  static void load_tokens(Column column, int columns, int start, int depth,
                          Fragment (&out)[kUnitsOfThread]) {
#pragma unroll
    for (int u = 0; u < kUnitsOfThread; ++u) {
      const int unit = thread_index() + u * kThreads;
      const int c = unit / (kDepth / kFragment);
      const int k = start + unit % (kDepth / kFragment) * kFragment;
      const T* src = c < columns ? column(c) : nullptr;
      out[u] = src && k < depth ? read(src + k) : Fragment{};
    }
  }

  static void stage(const Fragment (&tokens)[kUnitsOfThread], T* out) {
#pragma unroll
    for (int u = 0; u < kUnitsOfThread; ++u) {
      const int unit = thread_index() + u * kThreads;
      const int c = unit / (kDepth / kFragment);
      const int k = unit % (kDepth / kFragment) * kFragment;
      if (kUnits % kThreads == 0 || unit < kUnits)
        *reinterpret_cast<Fragment*>(out + c * kStride + k) = tokens[u];
    }
  }

  static void absorb(const T* tokens, const Fragment (&weights)[kFragments],
                     acc16 (&sums)[kPanels]) {
    const T* column = tokens + lane() % 32 * kStride + half() * kFragment;
#pragma unroll
    for (int f = 0; f < kFragments; ++f)
#pragma unroll
      for (int p = 0; p < kPanels; ++p) {
        const T* at = column + p * kColumns * kStride + f * 2 * kFragment;
        sums[p] = Mma<T>::multiply(weights[f], *reinterpret_cast<const Fragment*>(at), sums[p]);
      }
  }

  // Register i of a lane is channel 8 (i / 4) + 4 half + i % 4 of its column.
  template <class Epilogue>
  static void finish(int first, int rows, int columns, const acc16 (&sums)[kPanels],
                     Epilogue epilogue) {
#pragma unroll
    for (int p = 0; p < kPanels; ++p) {
      const int c = p * kColumns + lane() % 32;
#pragma unroll
      for (int i = 0; i < 16; i += kEpilogueRows) {
        const int row = first + 2 * i + 4 * half();
        float y[kEpilogueRows];
#pragma unroll
        for (int j = 0; j < kEpilogueRows; ++j) y[j] = row + j < rows ? sums[p][i + j] : 0.0f;
        if (c < columns && row < rows) epilogue(row, c, y);
      }
    }
  }

  Memory& memory_;
};

static_assert(GemmTarget<Gemm<bf16, 1>, bf16>);

}  // namespace blockdraft::cdna
