// Arguments of residual_norm's kernel, in the order of blockdraft.ops.residual_norm.Args.
#pragma once

#include "base/device.h"
#include "base/numbers.h"
#include "base/view.h"

namespace blockdraft {

template <class T>
struct ResidualNormParams {
  View<const T, 1> x;  // [x's rows][hidden]
  const T* weight;
  float eps;
  const T* scale;                 // none: 1
  const T* bias;                  // none: 0
  View<const float, 1> residual;  // [x's rows][hidden], or none
  const T* residual_scale;
  const T* residual_bias;
  const int32_t* index;   // [rows], or none: all
  View<T, 1> norm;        // [rows][hidden]
  View<float, 1> stream;  // [rows][hidden], or none

  int rows, hidden;

  BLOCKDRAFT_POINTERS(x, weight, scale, bias, residual, residual_scale, residual_bias, index, norm,
                      stream)
};

template <class T>
void launch(const ResidualNormParams<T>&, const Parallel&);
template <class T>
void launch(const ResidualNormParams<T>&, Stream);

}  // namespace blockdraft
