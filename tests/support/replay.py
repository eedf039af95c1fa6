"""What a CUDA graph does, on any device: torch's operators are recorded with the tensors that they
read and write, and replayed on the same memory, whatever Python would do by then."""

from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# For their results a GPU's host waits, which nothing may do while a graph is captured
WAITS = {"_local_scalar_dense", "equal", "masked_select", "nonzero"}


class _Record(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::").partition(".")[0]
        assert name not in WAITS, f"{func} waits for the device"
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result


def _memory(values) -> set[int]:
    tensors = [t for t in tree_leaves(values) if isinstance(t, torch.Tensor)]
    return {t.untyped_storage().data_ptr() for t in tensors if t.numel()}


class Graphs:
    """`capture` stands for that of `blockdraft.graph`; `replays` counts those of each graph."""

    def __init__(self) -> None:
        self.replays: list[int] = []

    def capture(self, function: Callable[[], None], device: torch.device) -> Callable[[], None]:
        """Recording runs the function, which capturing does not: the first replay is that run."""
        with _Record() as record:
            function()
        number = len(self.replays)
        self.replays.append(0)

        def replay() -> None:
            self.replays[number] += 1
            if self.replays[number] == 1:
                return
            for func, args, kwargs, result in record.calls:
                again = func(*args, **kwargs)
                if not _memory(result) <= _memory((args, kwargs)):
                    for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                        old.copy_(new)

        return replay
