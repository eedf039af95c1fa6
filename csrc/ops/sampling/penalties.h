// What a request changes of its logits before they are a distribution, id by id and as they are read
// (blockdraft.types.Penalties).
#pragma once

#include "base/view.h"
#include "tile/scan.h"

namespace blockdraft {

// Of one row of logits: its request's, and the drafts before it, which count as emitted.
struct Penalties {
  const uint32_t* touched;  // bits of ids; null: no penalties at all
  const int32_t *counts, *bias_ids;
  const float* bias;
  const int32_t* drafts;
  uint64_t near;  // bit (id / kNear) % 64 of each draft
  int biases, drafted;
  float repetition, presence, frequency;

  static constexpr int kNear = 4096;

  template <class T, class At>
  typename At::Float applied(At at, typename At::Float x) const {
    const int n = near >> (at.first / kNear % 64) & 1 ? drafted : 0;
    return at.template revise<T>(x, touched, drafts, n,
                                 [this](float value, int id) { return of(value, id); });
  }

  float of(float x, int id) const {
    int count = -1;  // unseen
    if (touched[id / 32] >> (id % 32) & 1) {
      count = counts[id];
      int low = 0;
      for (int high = biases; low < high;) {
        const int middle = (low + high) / 2;
        if (bias_ids[middle] < id)
          low = middle + 1;
        else
          high = middle;
      }
      if (low < biases && bias_ids[low] == id) x += bias[low];
    }
    for (int i = 0; i < drafted; ++i)
      if (drafts[i] == id) count = most(count, 0) + 1;
    if (count < 0) return x;
    x = __builtin_fmaf(-frequency, float(count), x > 0 ? x / repetition : x * repetition);
    return count > 0 ? x - presence : x;
  }
};

// Of all requests; no memory where there are no penalties.
struct PenaltiesParams {
  View<const uint32_t, 1> touched;  // [batch][words]
  View<const int32_t, 1> counts;    // [batch][vocab]
  const float *repetition, *presence, *frequency;
  View<const int32_t, 1> bias_ids;  // [batch][biases], or none
  View<const float, 1> bias;
  int biases;

  Penalties of(int request, const int32_t* drafts, int drafted) const {
    if (!touched) return {};
    uint64_t near = 0;
    for (int i = 0; i < drafted; ++i)
      if (drafts[i] >= 0) near |= uint64_t(1) << (drafts[i] / Penalties::kNear % 64);
    return {touched.at(request),
            counts.at(request),
            bias_ids.at(request),
            bias.at(request),
            drafts,
            near,
            biases,
            drafted,
            repetition[request],
            presence[request],
            frequency[request]};
  }

  BLOCKDRAFT_POINTERS(touched, counts, repetition, presence, frequency, bias_ids, bias)
};

}  // namespace blockdraft
