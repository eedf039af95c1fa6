// Parameters that both samplers share, from tensors.
#pragma once

#include "ops/sampling/draw.h"
#include "ops/torch.h"

namespace blockdraft {

inline SamplingParams sampling_of(const Tensor& temperature, const Optional& top_k,
                                  const Optional& top_p, const Optional& min_p) {
  return {data<float>(temperature), data<int32_t>(top_k), data<float>(top_p), data<float>(min_p)};
}

inline PenaltiesParams penalties_of(const Optional& touched, const Optional& counts,
                                    const Optional& repetition, const Optional& presence,
                                    const Optional& frequency, const Optional& bias_ids,
                                    const Optional& bias, View<const int32_t, 1> drafts) {
  return {.touched = view<const uint32_t, 1>(touched),
          .counts = view<const int32_t, 1>(counts),
          .repetition = data<float>(repetition),
          .presence = data<float>(presence),
          .frequency = data<float>(frequency),
          .bias_ids = view<const int32_t, 1>(bias_ids),
          .bias = view<const float, 1>(bias),
          .biases = bias ? int(bias->size(1)) : 0,
          .drafts = drafts};
}

}  // namespace blockdraft
