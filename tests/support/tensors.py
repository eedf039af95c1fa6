"""Where a backend's tensors live, and how they may lie in memory."""

import torch

from blockdraft import env


def device_of(backend: str) -> str:
    return "cuda" if backend == "triton" and not env.triton_interpreter() else "cpu"


def rows_apart(t: torch.Tensor) -> torch.Tensor:
    """The same values in memory with something else (NaN) between the rows."""
    wide = torch.full((*t.shape[:-1], t.shape[-1] + 8), -1 if t.dtype == torch.int32 else torch.nan)
    wide = wide.to(t)
    wide[..., : t.shape[-1]] = t
    return wide[..., : t.shape[-1]]
