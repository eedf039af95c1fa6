"""The rows of one forward pass: `verify | proposal 0 | proposal 1 | ...` for each request, packed
over the batch.

A request has n cached tokens, its prefix. Verify row 0 is the anchor, at position n; rows 1..D are
the drafts under test. A proposal of branch c continues verify row c-1: its M mask rows stand at
positions n+c, n+c+1, and so on.
"""

from dataclasses import dataclass

import torch

from .types import Rows, RowTable, is_integer


def ancestors(table: RowTable, depth: int) -> torch.Tensor:
    """int64 [T,depth+1]: column d is the d-th ancestor of each row, column 0 the row itself. An
    ancestor is a packed row, or -e for the e-th newest token of the request's stored state."""
    columns = [torch.arange(len(table.parent), device=table.parent.device)]
    for _ in range(depth):
        last = columns[-1]
        columns.append(torch.where(last >= 0, table.parent[last.clamp(min=0)], last - 1))
    return torch.stack(columns, 1)


def own_mask(table: RowTable, window: int, bidirectional: bool) -> torch.Tensor:
    """bool [T,T]: whether query row t sees key row u of the same pass. `window` 0 is none; the rows
    of a proposal see each other however narrow it is."""
    query = RowTable(*(field[:, None] for field in table))
    key = RowTable(*(field[None] for field in table))
    # the verify rows up to the one that a proposal continues, or up to the query itself
    verify = (key.proposal < 0) & (key.index < query.branch)
    if window:
        verify &= key.position > query.position - window
    proposal = (key.proposal >= 0) & (key.proposal == query.proposal)
    if not bidirectional:
        proposal &= key.index <= query.index
    return (verify | proposal) & query.live & key.live & (query.request == key.request)


def prefix_mask(table: RowTable, prefix: int, window: int) -> torch.Tensor:
    """bool [T,prefix]: whether query row t sees the cached token at each position."""
    position = torch.arange(prefix, device=table.position.device)
    seen = table.live[:, None].expand(-1, prefix)
    if window:
        seen = seen & (position > table.position[:, None] - window)
    return seen


@dataclass(frozen=True)
class BlockLayout:
    """The shape of every pass of a decode: up to K drafts under test, and P proposals of M mask
    rows each, which all see each other (`bidirectional`) or are causal."""

    K: int
    M: int
    P: int
    bidirectional: bool = True

    def __post_init__(self):
        for name, least in (("K", 0), ("M", 1), ("P", 0)):
            _need_integer("BlockLayout", name, getattr(self, name), least)
        if not isinstance(self.bidirectional, bool):
            raise ValueError(
                f"BlockLayout: bidirectional: expected True or False, got {self.bidirectional!r}"
            )

    @classmethod
    def tidar(
        cls, block: int = 16, P: int | None = None, bidirectional: bool = True
    ) -> "BlockLayout":
        """TiDAR (arXiv 2511.08923): the anchor belongs to the block, so K = block-1 and V = M =
        block. P defaults to V, a proposal for each length that might be accepted."""
        _need_integer("BlockLayout.tidar", "block", block, 1)
        return cls(block - 1, block, block if P is None else P, bidirectional)

    @classmethod
    def zyphra(
        cls, block: int = 16, P: int | None = None, bidirectional: bool = True
    ) -> "BlockLayout":
        """Zyphra's stack: the anchor comes on top of the block, so K = block and V = M = block+1. P
        defaults to V, a proposal for each length that might be accepted."""
        _need_integer("BlockLayout.zyphra", "block", block, 0)
        return cls(block, block + 1, block + 1 if P is None else P, bidirectional)

    @classmethod
    def autoregressive(cls) -> "BlockLayout":
        """Plain decoding: one verify row, nothing drafted."""
        return cls(K=0, M=1, P=0)

    @property
    def V(self) -> int:
        """Verify rows of a request."""
        return self.K + 1

    @property
    def rows(self) -> int:
        """All rows of a request."""
        return self.V + self.P * self.M

    def spread(self) -> list[int]:
        """Branches of the proposals, evenly over 1..V."""
        return [1 + round(j * (self.V - 1) / max(self.P - 1, 1)) for j in range(self.P)]

    def pack(
        self,
        prefix_lens: torch.Tensor,
        draft_len: torch.Tensor,
        branch: torch.Tensor,
        max_prefix: int,
    ) -> Rows:
        """Rows of a pass over B requests; int32 tensors [B], [B] and [B,P] (see Rows)."""
        request = torch.arange(len(prefix_lens) + 1, dtype=torch.int32, device=prefix_lens.device)
        return Rows(
            cu_rows=request * self.rows,
            prefix_lens=prefix_lens,
            draft_len=draft_len,
            branch=branch,
            mask_rows=self.M,
            bidirectional=self.bidirectional,
            max_rows=self.rows,
            max_prefix=max_prefix,
        )

    def table(self, prefix: int, branch: list[int], draft_len: int | None = None) -> RowTable:
        """The table of one request, to look at: `layout.table(3, [1, 2, 3]).position`. `draft_len`
        None is K."""
        if len(branch) != self.P:
            raise ValueError(
                f"BlockLayout.table: branch: expected {self.P} entries, got {len(branch)}"
            )
        drafts = self.K if draft_len is None else draft_len
        rows = self.pack(
            torch.tensor([prefix], dtype=torch.int32),
            torch.tensor([drafts], dtype=torch.int32),
            torch.tensor([branch], dtype=torch.int32).reshape(1, self.P),
            prefix,
        )
        return rows.table(self.rows)

    def dense_mask(
        self, prefix: int, branch: list[int], draft_len: int | None = None, window: int = 0
    ) -> torch.Tensor:
        """bool [rows,prefix+rows], what each row of one request sees: the cached tokens, then the
        rows of this pass."""
        table = self.table(prefix, branch, draft_len)
        cached = prefix_mask(table, prefix, window)
        return torch.cat([cached, own_mask(table, window, self.bidirectional)], 1)

    def mask_row(self, proposal: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        """The row, counted within its request, of mask `offset` of `proposal`."""
        return self.V + proposal * self.M + offset


def _need_integer(owner: str, name: str, value: object, least: int) -> None:
    if not is_integer(value, least, 2**31 - 1):
        raise ValueError(f"{owner}: {name}: expected an integer >= {least}, got {value!r}")
