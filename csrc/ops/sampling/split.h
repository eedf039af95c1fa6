// A vocab_block of a penalised row in two parts, so that a CPU scans it at the speed of others: the
// ids that no penalty touches, which a mask selects, and a short list of the others, with the logits
// that penalties make of theirs.
#pragma once

#include "ops/sampling/distribution.h"

namespace blockdraft {

// Which ids these are; the same for rows that are scanned together.
class Split {
  static constexpr int kWord = 32;
  static constexpr int kWords = 128;

 public:
  static constexpr int kRoom = 1024;  // on the list
  static constexpr int kPart = 16;    // whole parts of it are scanned

  // `listed_for`: whose touched ids and drafts are listed.
  Split(const Penalties& listed_for, Span span) : span_(span) {
    const TouchedIds* const all = listed_for.params->ids;
    const int block = all ? span.first / all->block : 0;
    fits_ = all && span.first == block * all->block && span.first % kWord == 0 &&
            span.stop - span.first <= kWords * kWord;
    if (!fits_) return;
    ids_ = all->ids + all->starts[block];
    counts_ = all->counts + all->starts[block];
    touched_ = all->starts[block + 1] - all->starts[block];
    others_ = all->others;
    fits_ = touched_ <= kRoom;
    if (!fits_) return;
    for (int i = 0; i < listed_for.drafted; ++i) {
      const int id = listed_for.draft(i);
      if (id < span.first || id >= span.stop || id == span.hole || place(id) >= 0) continue;
      fits_ = touched_ + drafted_ < kRoom;
      if (!fits_) return;
      drafts_[drafted_++] = id;
    }
  }

  bool fits() const { return fits_; }

  // All but the list. Its mask may be this object's: it is good until the next one.
  template <class T>
  Logits<T> rest(const Logits<T>& logits) {
    const uint32_t* kept = others_;
    if (logits.allowed || drafted_ > 0) {
      const int first = span_.first / kWord;
      const int words = ceil_div(span_.stop, kWord) - first;
      for (int i = 0; i < words; ++i)
        kept_[i] = others_[first + i] & (logits.allowed ? logits.allowed[first + i] : ~0u);
      for (int i = 0; i < drafted_; ++i)
        kept_[drafts_[i] / kWord - first] &= ~(1u << (drafts_[i] % kWord));
      kept = kept_ - first;  // of the row, if it began with this vocab_block
    }
    return {logits.row, nullptr, 1, kept};
  }

  // The list. Best after a scan of the rest, which brings these logits into a cache.
  template <class Scan, class T>
  Logits<float> list(const Scan&, const Logits<T>& logits, float* values) const {
    float counts[kRoom];
    for (int i = 0; i < touched_; ++i) values[i] = Scan::value(logits.row + ids_[i]);
    for (int i = 0; i < touched_; ++i) counts[i] = counts_[i];
    for (int i = 0; i < drafted_; ++i) {
      values[touched_ + i] = Scan::value(logits.row + drafts_[i]);
      counts[touched_ + i] = -1;
    }
    for (int i = touched_ + drafted_; i < listed().stop; ++i) {
      values[i] = -__builtin_inff();
      counts[i] = 0;
    }
    for (int i = 0; i < logits.penalties.drafted; ++i) {
      const int at = place(logits.penalties.draft(i));
      if (at >= 0) counts[at] = most(counts[at], 0.0f) + 1;
    }
    logits.penalties.template apply<Scan>(listed().stop, touched_, ids_, counts, values);
    if (logits.allowed)
      for (int i = 0; i < touched_ + drafted_; ++i)
        if (!Scan::bit(logits.allowed, i < touched_ ? ids_[i] : drafts_[i - touched_]))
          values[i] = -__builtin_inff();
    return {values, nullptr, 1, nullptr};
  }
  Span listed() const { return {0, ceil_div(touched_ + drafted_, kPart) * kPart, -1}; }

 private:
  // Of an id on the list; -1: none.
  int place(int id) const {
    if (id < span_.first || id >= span_.stop) return -1;
    for (int i = 0; i < touched_; ++i)
      if (ids_[i] == id) return i;
    for (int i = 0; i < drafted_; ++i)
      if (drafts_[i] == id) return touched_ + i;
    return -1;
  }

  Span span_;
  bool fits_;
  int touched_, drafted_ = 0;
  const int* ids_;
  const float* counts_;
  const uint32_t* others_;
  int drafts_[kRoom];  // that are on the list for that alone
  uint32_t kept_[kWords];
};

}  // namespace blockdraft
