// What a request changes of its logits before they are a distribution, id by id and as they are
// read (blockdraft.types.Penalties).
#pragma once

#include "base/view.h"
#include "tile/scan.h"

namespace blockdraft {

// The touched ids of a request, vocab_block by vocab_block, so that a CPU does not look for them in
// each row.
struct TouchedIds {
  int block;               // ids of a vocab_block
  const int* starts;       // of the vocab_blocks' ids
  const int* ids;          // ascending, no ids but the vocabulary's
  const float* counts;     // of these
  const uint32_t* others;  // bits of the others
};

// Of all requests; no memory where there are no penalties.
struct PenaltiesParams {
  View<const uint32_t, 1> touched;  // [batch][words]
  View<const int32_t, 1> counts;    // [batch][vocab]
  const float *repetition, *presence, *frequency;
  View<const int32_t, 1> bias_ids;  // [batch][biases], or none
  View<const float, 1> bias;
  int biases;
  View<const int32_t, 1> drafts;    // [batch][drafts], or none: ids that count as emitted
  const TouchedIds* ids = nullptr;  // on a CPU, of the one request that has these parameters

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
    struct One {
      static float all(float x) { return x; }
      static float select(bool mask, float a, float b) { return mask ? a : b; }
      static float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
    };
    return penalised(One(), x, float(count), repetition[request], presence[request],
                     frequency[request]);
  }
  // Both branches of each choice are cheaper than a jump.
  template <class At, class Float>
  static Float penalised(At at, Float x, Float count, float repetition, float presence,
                         float frequency) {
    const Float none = at.all(0.0f);
    const Float divided = x / at.all(repetition), multiplied = x * at.all(repetition);
    const Float emitted =
        at.fma(at.all(-frequency), count, at.select(x > none, divided, multiplied));
    const Float less = emitted - at.all(presence);
    return at.select(count < none, x, at.select(count > none, less, emitted));
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

  int draft(int i) const { return params->drafts.at(request)[i]; }
  // How many drafts there are, if any is near an id.
  int drafted_near(int id) const { return near >> (id / kNear % 32) & 1 ? drafted : 0; }

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
    const int n = drafted_near(at.first);
    auto drafts = [this] { return At::reload(params).drafts.at(request); };
    auto revised = [this](float value, int id) { return one<At>(value, id); };
    return at.template revise<T>(x, touched, drafts, n, revised);
  }
  // Of n numbers in a list, a multiple of 16, on a CPU; the first `touched` are of these ids.
  template <class Scan>
  void apply(int n, int touched, const int* ids, const float* counts, float* values) const {
    const PenaltiesParams& p = *params;
    if (p.biases > 0)
      for (int i = 0; i < touched; ++i) values[i] += p.bias_of(request, ids[i]);
    const float r = p.repetition[request], s = p.presence[request], f = p.frequency[request];
    auto revised = [=, &p](auto at) {
      return p.penalised(at, at.load(values), at.load(counts), r, s, f);
    };
    Scan::map(n, revised, values);
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
