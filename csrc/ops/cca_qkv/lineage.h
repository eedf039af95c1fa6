// Where a packed row stands and which tokens came before it.
#pragma once

#include "ops/cca_qkv/params.h"

namespace blockdraft {

// A row, by its place in the run of rows that it ends: the verify rows, or a proposal, which
// continues verify row branch - 1.
struct CcaRow {
  int row, index;  // packed, and in its run
  int branch;      // 0: a verify row
  int first;       // the request's first row
  int position;    // -1: the row is dead
  int slot;        // of the stored state; -1: none
  int64_t cell;    // of the cache, where k and v are stored; -1: nowhere

  // The packed row `back` tokens before this one; -e: the e-th newest stored token.
  int ancestor(int back) const {
    if (back <= index) return row - back;
    const int verify = branch - (back - index);
    return verify >= 0 ? first + verify : verify;
  }
};

// `request`: the row's, or one before it.
template <class Params>
CcaRow find_row(const Params& p, int row, int request) {
  const Rows& rows = p.rows;
  while (request + 1 < rows.batch && rows.cu_rows[request + 1] <= row) ++request;
  const int first = rows.cu_rows[request], place = row - first;
  const int masked = place - rows.verify_rows(request);
  CcaRow out{.row = row,
             .index = masked < 0 ? place : masked % rows.mask_rows,
             .branch = 0,
             .first = first,
             .position = -1,
             .slot = -1,
             .cell = -1};
  if (row >= rows.cu_rows[rows.batch]) return out;
  if (masked >= 0) out.branch = rows.live_branch(request, masked / rows.mask_rows);
  if (masked < 0 ? place > rows.draft_len[request] : out.branch == 0) return out;
  const int prefix = rows.prefix_lens[request];
  out.position = prefix + out.branch + out.index;
  if (p.slots && prefix > 0) out.slot = p.slots[request];
  if (p.k_cache && masked < 0) {
    const int page = p.block_table.at(request)[out.position / p.page];
    out.cell = int64_t(page) * p.page + out.position % p.page;
  }
  return out;
}

}  // namespace blockdraft
