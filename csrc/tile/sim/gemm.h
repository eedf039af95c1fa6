// The product of sim: plain loops. All waves stage the tokens, in memory that starts as NaN.
#pragma once

#include <cmath>
#include <vector>

#include "tile/gemm.h"
#include "tile/sim/group.h"

namespace blockdraft::sim {

template <class T>
class Gemm : public Group {
  static constexpr int kRowsOfWave = 8, kDepth = 32;

 public:
  static constexpr int kRows = kWaves * kRowsOfWave, kGroupColumns = 8;
  static constexpr int kEpilogueRows = 4;

  // Shared by the waves of a group: two buffers, each for a part of the tokens' depth.
  struct Memory {
    std::vector<float> tokens[2] = {std::vector<float>(kGroupColumns * kDepth, NAN),
                                    std::vector<float>(kGroupColumns * kDepth, NAN)};
  };

  Gemm(const Wave& wave, Memory& memory) : Group(wave), memory_(memory) {}

  template <class Weight, class Column, class Epilogue>
  void multiply(int rows, int columns, int depth, Weight weight, Column column, Epilogue epilogue) {
    float sums[kRowsOfWave][kGroupColumns] = {};
    const int first = wave_ * kRowsOfWave;
    for (int start = 0, part = 0; start < depth; start += kDepth, part ^= 1) {
      const int count = least(depth - start, kDepth);
      for (int c = wave_; c < columns; c += kWaves)
        for (int k = 0; k < count; ++k)
          memory_.tokens[part][c * kDepth + k] = value(column(c)[start + k]);
      barrier();
      for (int i = 0; i < kRowsOfWave && first + i < rows; ++i)
        for (int c = 0; c < columns; ++c)
          for (int k = 0; k < count; ++k)
            sums[i][c] +=
                value(weight(first + i)[start + k]) * memory_.tokens[part][c * kDepth + k];
    }
    for (int i = 0; i < kRowsOfWave && first + i < rows; i += kEpilogueRows)
      for (int c = 0; c < columns; ++c) {
        four y;
        for (int j = 0; j < kEpilogueRows; ++j) y[j] = first + i + j < rows ? sums[i + j][c] : 0.0f;
        epilogue(first + i, c, y);
      }
  }

 private:
  Memory& memory_;
};

static_assert(GemmTarget<Gemm<float>, float>);
static_assert(GemmTarget<Gemm<bf16>, bf16, float>);
static_assert(ScaledGemmTarget<Gemm<bf16>, bf16, e2m1x2>);

}  // namespace blockdraft::sim
