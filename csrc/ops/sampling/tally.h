// How often each number occurs in a row of 16-bit logits, which have 65536 numbers at most: one
// reading of the row, whatever it holds, tells where it is to be cut.
#pragma once

#include "ops/sampling/measure.h"

namespace blockdraft {

// Memory for a tally: `parts` times a count of each number, and the list of those that occur.
struct TallyMemory {
  static constexpr int kNumbers = 1 << 16;
  static constexpr int kRoom = 24576;  // numbers that a list can hold

  uint32_t* counts;
  float* list;  // [2][kRoom]
  int parts;    // that threads may fill at the same time; 0: no memory

  static constexpr int kListSize = 2 * kRoom;
};

// A row's finite logits in descending order, and how often each occurs.
struct Tally {
  const float *logits, *counts;
  int size;  // more than kRoom: they do not fit
  int status;

  Span span() const { return {0, size, -1}; }
};

// The crew counts, then its calling thread lists.
template <class Crew, class T>
Tally tally(Crew& crew, const Vocabulary& vocabulary, const Logits<T>& row,
            const TallyMemory& memory) {
  constexpr int kNumbers = TallyMemory::kNumbers;
  const Vocabulary parts(vocabulary.size, vocabulary.mask,
                         ceil_div(vocabulary.blocks, memory.parts) * vocabulary.block);
  crew.each_block(parts, [&](const auto& scan, int part, Span span) {
    uint32_t* const counts = memory.counts + part * kNumbers;
    __builtin_memset(counts, 0, kNumbers * sizeof *counts);
    scan.count(span, row.row, row.allowed, counts);
  });
  for (int part = 1; part < parts.blocks; ++part)
    for (int i = 0; i < kNumbers; ++i) memory.counts[i] += memory.counts[part * kNumbers + i];

  constexpr int kSign = 0x8000;
  constexpr int kInfinity = __is_same(T, bf16) ? 0x7f80 : 0x7c00;
  uint32_t* const counts = memory.counts;
  float* const logits = memory.list;
  float* const times = memory.list + TallyMemory::kRoom;
  counts[0] += counts[kSign];  // -0 counts as 0
  counts[kSign] = 0;
  int size = 0;
  auto add = [&](int bits) {
    if (size < TallyMemory::kRoom) {
      logits[size] = Crew::Scan::value(reinterpret_cast<const T*>(&bits));
      times[size] = float(counts[bits]);
    }
    ++size;
  };
  // Whether any number of `first` up to `stop` occurs.
  auto any = [&](int first, int stop) {
    uint32_t found = 0;
    for (int i = first; i < stop; ++i) found |= counts[i];
    return found != 0;
  };
  constexpr int kStep = 64;
  for (int first = kInfinity - kStep; first >= 0; first -= kStep)
    if (any(first, first + kStep))
      for (int i = first + kStep - 1; i >= first; --i)
        if (counts[i]) add(i);
  for (int first = kSign; first < kSign + kInfinity; first += kStep)
    if (any(first, first + kStep))
      for (int i = first; i < first + kStep; ++i)
        if (counts[i]) add(i);
  const bool numbers = !any(kInfinity, kSign) && !any(kSign + kInfinity + 1, kNumbers);
  return {logits, times, size, !numbers ? kNotNumbers : size ? kFine : kEmpty};
}

}  // namespace blockdraft
