"""Triton's interpreter with newer numpy."""


def mend() -> None:
    """Triton 3.6 calls int() on arrays of one element; numpy >= 2.4 refuses (triton #9171)."""
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor

    def patch_tensor_and_index(tensor, scope):
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_tensor_and_index
