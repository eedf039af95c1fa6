// Arguments of linear's kernel, in the order of blockdraft.ops.linear.Args.
#pragma once

#include "base/device.h"
#include "base/numbers.h"
#include "base/view.h"

namespace blockdraft {

template <class T>
struct LinearParams {
  View<const T, 1> x;       // [rows][inputs]
  View<const T, 1> weight;  // [outputs][inputs]
  const T* bias;            // [outputs], or none
  View<T, 1> out;           // [rows][outputs]

  int rows, inputs, outputs;

  BLOCKDRAFT_POINTERS(x, weight, bias, out)
};

template <class T>
void launch(const LinearParams<T>&, const Parallel&);

}  // namespace blockdraft
