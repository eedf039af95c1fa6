// The packed rows of a batch, blockdraft.types.Rows.
#pragma once

#include "base/view.h"

namespace blockdraft {

struct Rows {
  const int32_t* cu_rows;         // [batch + 1]
  const int32_t* prefix_lens;     // [batch]
  const int32_t* draft_len;       // [batch]
  View<const int32_t, 1> branch;  // [batch][proposals]
  int mask_rows;
  bool bidirectional;
  int max_rows, max_prefix;
  int batch, proposals;

  BLOCKDRAFT_POINTERS(cu_rows, prefix_lens, draft_len, branch)

  int count(int request) const { return cu_rows[request + 1] - cu_rows[request]; }
  int verify_rows(int request) const { return count(request) - mask_rows * proposals; }

  // The branch of a proposal; 0 if it is dead.
  int live_branch(int request, int proposal) const {
    const int branch = this->branch.at(request)[proposal];
    return branch >= 1 && branch <= draft_len[request] + 1 ? branch : 0;
  }
};

}  // namespace blockdraft
