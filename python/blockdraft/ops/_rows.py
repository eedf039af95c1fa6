"""How `Rows` crosses an operator's schema."""

from ..types import Rows

SCHEMA = (
    "Tensor cu_rows, Tensor prefix_lens, Tensor draft_len, Tensor branch, int mask_rows, bool bidirectional, "
    "int max_rows, int max_prefix"
)


def flatten(rows: Rows) -> tuple:
    return (
        rows.cu_rows,
        rows.prefix_lens,
        rows.draft_len,
        rows.branch,
        rows.mask_rows,
        rows.bidirectional,
        rows.max_rows,
        rows.max_prefix,
    )
