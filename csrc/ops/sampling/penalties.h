// What a request changes of its logits before they are a distribution, id by id and as they are
// read (blockdraft.types.Penalties).
#pragma once

#include "base/view.h"
#include "tile/scan.h"

namespace blockdraft {

// Of all requests; no memory where there are no penalties.
struct PenaltiesParams {
  View<const uint32_t, 1> touched;  // [batch][words]
  View<const int32_t, 1> counts;    // [batch][vocab]
  const float *repetition, *presence, *frequency;
  View<const int32_t, 1> bias_ids;  // [batch][biases], or none
  View<const float, 1> bias;
  int biases;
  View<const int32_t, 1> drafts;  // [batch][drafts], or none: ids that count as emitted

  bool has(int request, int id) const { return touched.at(request)[id / 32] >> (id % 32) & 1; }
  float bias_of(int request, int id) const {
    const int32_t* const ids = bias_ids.at(request);
    int low = 0;
    for (int high = biases; low < high;) {
      const int middle = (low + high) / 2;
      if (ids[middle] < id)
        low = middle + 1;
      else
        high = middle;
    }
    return low < biases && ids[low] == id ? bias.at(request)[low] : 0.0f;
  }
  int drafted_before(int request, int drafted, int id) const {
    int times = 0;
    for (int i = 0; i < drafted; ++i) times += drafts.at(request)[i] == id;
    return times;
  }
  // Whether nothing of a request's logits changes.
  bool none(int request) const {
    const bool biased = biases > 0 && bias_ids.at(request)[0] != INT32_MAX;
    return !biased && repetition[request] == 1 && presence[request] == 0 && frequency[request] == 0;
  }
  float penalised(float x, int request, int count) const {
    if (count < 0) return x;
    const float repeated = repetition[request];
    x = __builtin_fmaf(-frequency[request], float(count), x > 0 ? x / repeated : x * repeated);
    return count > 0 ? x - presence[request] : x;
  }

  BLOCKDRAFT_POINTERS(touched, counts, repetition, presence, frequency, bias_ids, bias, drafts)
};

// Of one row of logits, behind so many drafts. Few ids are touched, so that a GPU reads all else
// about them again for each one and each use (At::reload), lest it takes registers from every scan.
struct Penalties {
  const PenaltiesParams* params;  // null where At::reload finds them
  const uint32_t* touched;        // bits of ids; null: no penalties at all
  uint32_t near;                  // bit (id / kNear) % 32 of each draft
  int request, drafted;

  static constexpr int kNear = 8192;

  template <class Scan>
  static Penalties of(const PenaltiesParams& p, int request, int drafted) {
    if (!p.touched) return {};
    // On a CPU, which scans rows without penalties in other ways: the bits of a request's row do
    // not depend on the other requests.
    if (!Scan::kReloads && p.none(request)) return {};
    uint32_t near = 0;
    for (int i = 0; i < drafted; ++i) {
      const int id = p.drafts.at(request)[i];
      if (id >= 0) near |= 1u << (id / kNear % 32);
    }
    return {Scan::kReloads ? nullptr : &p, p.touched.at(request), near, request, drafted};
  }

  template <class T, class At>
  typename At::Float applied(At at, typename At::Float x) const {
    const int n = near >> (at.first / kNear % 32) & 1 ? drafted : 0;
    auto drafts = [this] { return At::reload(params).drafts.at(request); };
    auto revised = [this](float value, int id) { return one<At>(value, id); };
    return at.template revise<T>(x, touched, drafts, n, revised);
  }
  template <class At>
  float one(float x, int id) const {
    int count = -1;  // neither of the prompt nor emitted
    if (At::reload(params).has(request, id)) {
      count = At::reload(params).counts.at(request)[id];
      x += At::reload(params).bias_of(request, id);
    }
    const int more = At::reload(params).drafted_before(request, drafted, id);
    if (more > 0) count = most(count, 0) + more;
    return At::reload(params).penalised(x, request, count);
  }
};

}  // namespace blockdraft
