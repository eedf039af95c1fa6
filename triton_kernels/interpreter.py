"""Patches Triton's interpreter: Triton 3.6 calls int() on arrays of one element, which raises an
error with numpy >= 2.4 (triton #9171)."""

from triton.runtime import interpreter

_patch_tensor = interpreter._patch_lang_tensor


def _patch_tensor_and_index(tensor, scope):
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = _patch_tensor_and_index
