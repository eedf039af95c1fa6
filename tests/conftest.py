"""Triton 3.6's interpreter fails with numpy >= 2.4, which converts no array of one element to an int (triton #9171)."""

from blockdraft import env

if env.triton_interpreter():
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched
