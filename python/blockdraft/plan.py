"""Ops that are checked once and run many times on the same tensors: a step of a decode, captured in
the way of a CUDA graph, on any device."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from . import ops, registry


class _Profile(threading.local):
    seconds: Counter[str] | None = None


_PROFILE = _Profile()


@contextmanager
def profiling() -> Iterator[Counter[str]]:
    """Within, plans that this thread runs add each kernel's seconds to its op's. For a CPU: a GPU's
    kernels are only started in that time."""
    before, _PROFILE.seconds = _PROFILE.seconds, Counter()
    try:
        yield _PROFILE.seconds
    finally:
        _PROFILE.seconds = before


class Plan:
    """The kernel calls of a sequence of ops.

        plan = Plan()
        q, k, v = plan.ops.cca_qkv(qk, v_now, v_late, ...)  # checks, allocates, chooses the backend
        out = plan.ops.block_attention(q, k, v, ...)
        plan.run()                                          # now, and as often as wanted

    `plan.ops` has the functions of `blockdraft.ops`. They record the kernel instead of starting it
    and return the tensors that it will write. `run` starts all of them in order, without checks, on
    the tensors as they are then: the caller changes inputs in place. Shapes, dtypes and numbers
    are checked and fixed; the values of tensors (prefix lengths, drafts, page numbers) are not
    looked at. What is computed by other means in between is not recorded: views are fine,
    arithmetic is not.
    """

    def __init__(self, namespace: ModuleType | SimpleNamespace = ops) -> None:
        self._calls: list[registry.Call] = []
        self.ops = _Recording(namespace, self)

    def __len__(self) -> int:
        """How many kernels are recorded."""
        return len(self._calls)

    @property
    def device(self) -> torch.device:
        """Of the first kernel."""
        return registry.first_tensor(self._calls[0].arguments).device

    def record(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function that calls ops, and record their kernels instead of starting them."""
        before = len(self._calls)
        with registry.recording(self._calls):
            result = function(*args, **kwargs)
        if len(self._calls) == before:
            name = getattr(function, "__name__", function)
            raise TypeError(f"Plan: {name}: expected an op of blockdraft, which records kernels")
        return result

    def run(self) -> None:
        seconds = _PROFILE.seconds
        if seconds is None:
            for _, kernel, arguments in self._calls:
                kernel(*arguments)
            return
        for op, kernel, arguments in self._calls:
            began = time.perf_counter()
            kernel(*arguments)
            seconds[op] += time.perf_counter() - began


class _Recording:
    def __init__(self, namespace: ModuleType | SimpleNamespace, plan: Plan) -> None:
        self._namespace = namespace
        self._plan = plan

    def __getattr__(self, name: str) -> Callable[..., Any]:
        record = partial(self._plan.record, getattr(self._namespace, name))
        setattr(self, name, record)
        return record
