"""The ops on arrays of other frameworks: NumPy, CuPy, JAX, whatever speaks DLPack.

    from blockdraft.interop import ops

    y = ops.fused_moe(x, experts, weights, gate_up, down)  # jax.Array in, jax.Array out

Nothing is copied: arrays become torch tensors of the same memory, and results arrays of the kind of
the first array among the arguments. What an op writes in place (`out`, caches, states) must be an
array that may change, which JAX's are not.
"""

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch

from . import ops as torch_ops
from . import registry


def tensor(array: Any) -> torch.Tensor:
    """A torch tensor of an array's memory."""
    return array if isinstance(array, torch.Tensor) else torch.from_dlpack(array)


def array(t: torch.Tensor, like: Any) -> Any:
    """An array of a tensor's memory, of the framework of `like`."""
    if isinstance(like, torch.Tensor):
        return t
    package = type(like).__module__.partition(".")[0]
    package = {"jaxlib": "jax.numpy", "jax": "jax.numpy"}.get(package, package)
    return importlib.import_module(package).from_dlpack(t)


class _Ops:
    """The functions of `blockdraft.ops`, on arrays; Rows, Sampling and workspaces may hold arrays,
    too."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(torch_ops, name)
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs)
            for argument in _written(name) & set(given.arguments):
                for leaf in _leaves(given.arguments[argument]):
                    if not _is_writable(leaf):
                        raise TypeError(
                            f"{name}: {argument}: expected an array that may be written, "
                            f"got a read-only {type(leaf).__name__}"
                        )
            like = next(_leaves(tuple(given.arguments.values())), torch.empty(0))
            results = function(*_map(tensor, given.args), **_map(tensor, given.kwargs))
            return _map(lambda t: array(t, like), results)

        setattr(self, name, call)
        return call


ops = _Ops()


def _is_array(value: Any) -> bool:
    return hasattr(value, "__dlpack__")


def _is_writable(leaf: Any) -> bool:
    if type(leaf).__module__.partition(".")[0] in ("jax", "jaxlib"):
        return False
    return getattr(getattr(leaf, "flags", None), "writeable", True)


def _written(name: str) -> set[str]:
    """The arguments of a public op that it may write."""
    known = registry.OPS[name].arguments if name in registry.OPS else []
    return {a.path.partition(".")[0] for a in known if a.role} | {"out", "workspace"}


def _leaves(value: Any) -> Iterator[Any]:
    """The arrays in an argument."""
    found: list[Any] = []
    _map(found.append, value)
    return iter(found)


def _map(function: Callable[[Any], Any], value: Any) -> Any:
    """`function` of every array in tuples, lists, dicts and the project's groups of tensors."""
    if _is_array(value):
        return function(value)
    if isinstance(value, dict):
        return {key: _map(function, part) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map(function, part) for part in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_map(function, part) for part in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return type(value)(**_map(function, fields))
    return value
