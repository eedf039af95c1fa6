// A vocab_block of a penalised row in two parts, so that a CPU scans it at the speed of others: the
// ids that no penalty touches, which a mask selects, and a short list of the others, with the logits
// that penalties make of theirs.
#pragma once

#include "ops/sampling/distribution.h"

namespace blockdraft {

template <class T>
class Split {
  static constexpr int kWord = 32;
  static constexpr int kWords = 128, kRoom = 1024;

 public:
  // `listed_for`: whose touched ids and drafts are listed; rows that are scanned together have the
  // same lists.
  template <class Scan>
  Split(const Scan&, const Logits<T>& logits, const Penalties& listed_for, Span span)
      : logits_(logits) {
    const int first = span.first / kWord;
    const int words = ceil_div(span.stop, kWord) - first;
    fits_ = span.first % kWord == 0 && words <= kWords && !logits.other;
    if (!fits_) return;
    for (int i = 0; i < words; ++i) bits_[i] = listed_for.touched[first + i];
    for (int i = 0; i < listed_for.drafted; ++i) {
      const int id = listed_for.draft(i);
      if (id >= span.first && id < span.stop) bits_[id / kWord - first] |= 1u << (id % kWord);
    }
    bits_[words] = 0;
    for (int i = 0; i < words; i += 2)
      for (uint64_t bits = bits_[i] | uint64_t(bits_[i + 1]) << kWord; bits; bits &= bits - 1) {
        fits_ = listed_ < kRoom;
        if (!fits_) return;
        const int id = (first + i) * kWord + __builtin_ctzll(bits);
        ids_[listed_] = id;
        listed_ += id < span.stop && id != span.hole;
      }
    for (int i = 0; i < words; ++i)
      bits_[i] = ~bits_[i] & (logits.allowed ? logits.allowed[first + i] : ~0u);
    all_touched_ = listed_for.drafted == 0;
    words_ = bits_ - first;
  }

  bool fits() const { return fits_; }
  Logits<T> rest() const { return {logits_.row, nullptr, 1, words_}; }
  // With what its penalties should have changed, beside a row whose mask leaves that out.
  Logits<T> row() const { return {logits_.row, nullptr, 1, nullptr}; }
  // Best after a scan of the rest, which brings these logits into a cache.
  template <class Scan>
  Logits<float> list(const Scan&) {
    int counts[kRoom];
    for (int i = 0; i < listed_; ++i) values_[i] = Scan::value(logits_.row + ids_[i]);
    logits_.penalties.apply(listed_, ids_, all_touched_, counts, values_);
    if (logits_.allowed)
      for (int i = 0; i < listed_; ++i)
        if (!Scan::bit(logits_.allowed, ids_[i])) values_[i] = -__builtin_inff();
    while (listed_ % kWord) values_[listed_++] = -__builtin_inff();
    return {values_, nullptr, 1, nullptr};
  }
  Span listed() const { return {0, listed_, -1}; }

 private:
  uint32_t bits_[kWords + 1];
  int ids_[kRoom];
  float values_[kRoom];
  int listed_ = 0;
  bool fits_;
  Logits<T> logits_;
  bool all_touched_;
  const uint32_t* words_;  // of the row, if it began with this vocab_block
};

}  // namespace blockdraft
