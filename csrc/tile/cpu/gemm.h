// The product of a CPU. Each part of the depth is first converted to fp32 panels, so that the
// micro-kernels run at FMA speed for every input type.
#pragma once

#include <algorithm>
#include <vector>

#include "tile/cpu/group.h"
#include "tile/cpu/micro.h"
#include "tile/gemm.h"

namespace blockdraft::cpu {

template <class T>
class Gemm : public Group {
  static constexpr int kDepth = 256;  // of a part, whose weights and tokens stay in the L2
  static constexpr int kPanels = 4;

 public:
  static constexpr int kRows = 96, kGroupColumns = kPanels * kColumns;

  Gemm()
      : weights_(kRows * kDepth), tokens_(kGroupColumns * kDepth), sums_(kRows * kGroupColumns) {}

  template <class Weight, class Column, class Epilogue>
  void multiply(int rows, int columns, int depth, Weight weight, Column column, Epilogue epilogue) {
    std::fill(sums_.begin(), sums_.end(), 0.0f);
    for (int start = 0; start < depth; start += kDepth) {
      const int part = least(depth - start, kDepth);
      for (int i = 0; i < rows; ++i) stage_weight(weight(i) + start, i, part);
      for (int c = 0; c < ceil_div(columns, kColumns) * kColumns; ++c)
        stage_token(c < columns ? column(c) : nullptr, start, c, part);
      for (int p = 0; p * kColumns < columns; ++p)
        product<true>(weights_.data(), kDepth, 1, tokens_.data() + p * kDepth * kColumns,
                      sums_.data() + p * kRows * kColumns, rows, part, [] {});
    }
    for (int i = 0; i < rows; i += kEpilogueRows)
      for (int c = 0; c < columns; ++c) finish(i, c, rows, epilogue);
  }

 private:
  void stage_weight(const T* src, int i, int part) {
    for (int k = 0; k < part; k += 16 / int(sizeof(T)))
      for (int j = 0; j < 16 / int(sizeof(T)); j += kLanes) widen_some(src + k + j, i, k + j);
  }
  void widen_some(const T* src, int i, int k) {
    float* out = weights_.data() + i * kDepth + k;
    if constexpr (sizeof(T) == 4) {
      std::copy(src, src + 4, out);
    } else {
      cpu::store(out, to_float(src));
    }
  }

  // Tokens are stored as [panel][k][column].
  void stage_token(const T* src, int start, int c, int part) {
    float* out = tokens_.data() + c / kColumns * kDepth * kColumns + c % kColumns;
    for (int k = 0; k < part; ++k) out[k * kColumns] = src ? value(src[start + k]) : 0.0f;
  }

  template <class Epilogue>
  void finish(int i, int c, int rows, Epilogue epilogue) const {
    const float* sum = sums_.data() + c / kColumns * kRows * kColumns + c % kColumns;
    float y[kEpilogueRows];
    for (int j = 0; j < kEpilogueRows; ++j) y[j] = i + j < rows ? sum[(i + j) * kColumns] : 0.0f;
    epilogue(i, c, y);
  }

  std::vector<float> weights_, tokens_, sums_;  // kept between calls
};

static_assert(GemmTarget<Gemm<bf16>, bf16>);

}  // namespace blockdraft::cpu
