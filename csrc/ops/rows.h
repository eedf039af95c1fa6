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

  int first(int request) const { return constant(cu_rows + request); }
  int prefix(int request) const { return constant(prefix_lens + request); }
  int drafts(int request) const { return constant(draft_len + request); }
  int count(int request) const { return first(request + 1) - first(request); }
  int verify_rows(int request) const { return count(request) - mask_rows * proposals; }

  // The branch of a proposal; 0 if it is dead.
  int live_branch(int request, int proposal) const {
    const int branch = constant(this->branch.at(request) + proposal);
    return branch >= 1 && branch <= drafts(request) + 1 ? branch : 0;
  }
};

}  // namespace blockdraft
