// Where a packed row stands and which tokens came before it.
#pragma once

#include "ops/rows.h"

namespace blockdraft {

// A row, by its place in the run of rows that it ends: the verify rows, or a proposal, which
// continues verify row branch - 1.
struct PackedRow {
  int row, index;  // packed, and in its run
  int branch;      // 0: a verify row
  int first;       // the request's first row
  int position;    // -1: the row is dead
  int slot;        // of the stored state; -1: none
  int page, cell;  // of the cache and of the page, where k and v are stored; page -1: nowhere

  // The packed row `back` tokens before this one; -e: the e-th newest stored token.
  int ancestor(int back) const {
    if (back <= index) return row - back;
    const int verify = branch - (back - index);
    return verify >= 0 ? first + verify : verify;
  }
};

// The request of a packed row, or the last one. All threads of the group have it.
template <class Group>
int request_of(const Group& group, const Rows& rows, int row) {
  // It has as many before it as end there.
  int request = 0;
  for (int b = 0; b < rows.batch; b += 64) {
    const int count = least(rows.batch - b, 64);
    const auto ends = group.list(count, [&](int i) { return rows.cu_rows[b + i + 1]; });
    request += __builtin_popcountll(ends.bits([&](int end) { return end <= row; }));
  }
  return least(request, rows.batch - 1);
}

// `request`: the row's, or one before it. What is read of a request is read at once.
template <class Params>
PackedRow find_row(const Params& p, int row, int request) {
  const Rows& rows = p.rows;
  int first = rows.cu_rows[request], next = rows.cu_rows[request + 1];
  const int total = rows.cu_rows[rows.batch];
  while (request + 1 < rows.batch && next <= row) {
    ++request;
    first = next;
    next = rows.cu_rows[request + 1];
  }
  const int drafts = rows.draft_len[request], prefix = rows.prefix_lens[request];
  int slot = -1;
  if constexpr (requires { p.slots; }) slot = p.slots ? p.slots[request] : -1;
  const int place = row - first;
  const int masked = place - (next - first - rows.mask_rows * rows.proposals);
  PackedRow out{.row = row,
                .index = masked < 0 ? place : masked % rows.mask_rows,
                .branch = 0,
                .first = first,
                .position = -1,
                .slot = -1,
                .page = -1,
                .cell = 0};
  if (row >= total) return out;
  if (masked >= 0) out.branch = rows.live_branch(request, masked / rows.mask_rows);
  if (masked < 0 ? place > drafts : out.branch == 0) return out;
  out.position = prefix + out.branch + out.index;
  if (prefix > 0) out.slot = slot;
  if (p.k_cache && masked < 0) {
    out.page = p.block_table.at(request)[out.position >> p.page_shift];
    out.cell = out.position & ((1 << p.page_shift) - 1);
  }
  return out;
}

}  // namespace blockdraft
