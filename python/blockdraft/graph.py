"""Passes replayed from CUDA (or HIP) graphs. A pass is some hundred kernels, most of which are
shorter than their launch."""

from collections.abc import Callable

import torch


def capture(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """The kernels that `function` starts, as one launch; none of them runs yet. Tensors that it
    makes keep their memory as long as the graph lives."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        function()
    return graph.replay


class Replayed:
    """A function that changes tensors in place and waits for nothing, run by its graph.

    Its first call runs as it is, so that kernels are compiled and libraries have their workspaces;
    the second one is captured. After `renew` this begins again: for when the function would use
    other tensors or take another way. `device` None: it always runs as it is.
    """

    def __init__(self, function: Callable[[], None], device: torch.device | None) -> None:
        self._function, self._device = function, device
        self.renew()

    def renew(self) -> None:
        self._run, self._calls = self._function, 0

    def __call__(self) -> None:
        if self._device is not None and self._calls == 1:
            self._run = capture(self._function, self._device)
        self._calls += 1
        self._run()
