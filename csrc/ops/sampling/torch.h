// Parameters that both samplers share, from tensors.
#pragma once

#include "ops/sampling/draw.h"
#include "ops/torch.h"

namespace blockdraft {

inline SamplingParams sampling_of(const Tensor& temperature, const Optional& top_k,
                                  const Optional& top_p, const Optional& min_p) {
  return {data<float>(temperature), data<int32_t>(top_k), data<float>(top_p), data<float>(min_p)};
}

}  // namespace blockdraft
