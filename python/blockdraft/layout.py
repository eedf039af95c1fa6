"""The rows of one forward pass: `verify | proposal 0 | proposal 1 | ...` for each request, packed
over the batch.

A request has `n` cached tokens (its prefix). Verify row 0 is the anchor at position n, rows 1..D
are the drafts under test. Proposal j of branch c holds `mask_rows` mask tokens at positions n+c,
n+c+1, ...; it continues verify row c-1.
"""

from dataclasses import dataclass

import torch

from .types import Rows, RowTable


def ancestors(table: RowTable, depth: int) -> torch.Tensor:
    """int64 [T, depth+1]: column d is the d-th ancestor (column 0 the row itself): a packed row, or
    -e for the e-th newest token of the request's stored state."""
    columns = [torch.arange(len(table.parent), device=table.parent.device)]
    for _ in range(depth):
        last = columns[-1]
        columns.append(torch.where(last >= 0, table.parent[last.clamp(min=0)], last - 1))
    return torch.stack(columns, 1)


def own_mask(table: RowTable, window: int, bidirectional: bool) -> torch.Tensor:
    """bool [T,T]: may query row t see key row u of the same pass? `window` 0 is no window; a
    proposal ignores it within."""
    q, k = (
        RowTable(*(field[:, None] for field in table)),
        RowTable(*(field[None] for field in table)),
    )
    trunk = (k.proposal < 0) & (k.index < q.branch)
    block = (k.proposal >= 0) & (k.proposal == q.proposal)
    if not bidirectional:
        block = block & (k.index <= q.index)
    if window:
        trunk = trunk & (k.position > q.position - window)
    return (trunk | block) & q.live & k.live & (q.request == k.request)


def prefix_mask(table: RowTable, prefix: int, window: int) -> torch.Tensor:
    """bool [T,prefix]: may query row t see the cached token at a position?"""
    position = torch.arange(prefix, device=table.position.device)
    seen = table.live[:, None].expand(-1, prefix)
    return seen & (position > table.position[:, None] - window) if window else seen


@dataclass(frozen=True)
class BlockLayout:
    """Static shape of a decode step: up to K drafts under test, P proposals of M mask rows each."""

    K: int
    M: int
    P: int
    bidirectional: bool = True

    def __post_init__(self):
        for name, least in (("K", 0), ("M", 1), ("P", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(
                    f"BlockLayout: {name}: expected an integer >= {least}, got {value!r}"
                )

    @classmethod
    def tidar(
        cls, block: int = 16, P: int | None = None, bidirectional: bool = True
    ) -> "BlockLayout":
        """TiDAR (arXiv 2511.08923): anchor included in the block, K = block-1, V = M = block. P
        defaults to V, one a length."""
        return cls(block - 1, block, block if P is None else P, bidirectional)

    @classmethod
    def zyphra(
        cls, block: int = 16, P: int | None = None, bidirectional: bool = True
    ) -> "BlockLayout":
        """Zyphra's stack: the anchor comes on top of the block, K = block, V = M = block+1. P
        defaults to V."""
        return cls(block, block + 1, block + 1 if P is None else P, bidirectional)

    @classmethod
    def autoregressive(cls) -> "BlockLayout":
        """One verify row, nothing drafted."""
        return cls(0, 1, 0)

    @property
    def V(self) -> int:
        return self.K + 1

    @property
    def rows(self) -> int:
        return self.V + self.P * self.M

    def pack(
        self,
        prefix_lens: torch.Tensor,
        draft_len: torch.Tensor,
        branch: torch.Tensor,
        max_prefix: int,
    ) -> Rows:
        """Rows of a decode step for B requests (all tensors int32, shapes [B], [B], [B,P])."""
        step = (
            torch.arange(len(prefix_lens) + 1, dtype=torch.int32, device=prefix_lens.device)
            * self.rows
        )
        return Rows(
            step, prefix_lens, draft_len, branch, self.M, self.bidirectional, self.rows, max_prefix
        )

    def table(self, prefix: int, branch: list[int], draft_len: int | None = None) -> RowTable:
        """The table of one request: `layout.table(3, [1, 2, 3]).position`, `.parent`, `.live`."""
        if len(branch) != self.P:
            raise ValueError(
                f"BlockLayout.table: branch: expected {self.P} entries, got {len(branch)}"
            )
        i32 = dict(dtype=torch.int32)
        rows = self.pack(
            torch.tensor([prefix], **i32),
            torch.tensor([self.K if draft_len is None else draft_len], **i32),
            torch.tensor([branch], **i32).reshape(1, self.P),
            prefix,
        )
        return rows.table(self.rows)

    def dense_mask(
        self, prefix: int, branch: list[int], draft_len: int | None = None, window: int = 0
    ) -> torch.Tensor:
        """bool [rows, prefix + rows] for one request: columns are the cached tokens, then the rows
        of this pass."""
        table = self.table(prefix, branch, draft_len)
        return torch.cat(
            [prefix_mask(table, prefix, window), own_mask(table, window, self.bidirectional)], 1
        )

    def mask_row(self, proposal: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        """Row, within its request, of mask `offset` of `proposal`."""
        return self.V + proposal * self.M + offset
