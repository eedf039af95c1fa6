"""Triton's interpreter with newer numpy, and without work done twice."""

from functools import cache


def mend() -> None:
    from triton.runtime import interpreter

    _index_by_item(interpreter)
    _patch_once(interpreter)


def _index_by_item(interpreter) -> None:
    """Triton 3.6 calls int() on arrays of one element; numpy >= 2.4 refuses (triton #9171)."""
    patch_tensor = interpreter._patch_lang_tensor

    def patch_tensor_and_index(tensor, scope):
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_tensor_and_index


def _patch_once(interpreter) -> None:
    """Triton 3.6 patches the language again whenever a kernel calls a function: more than half of
    all time."""
    language = interpreter.tl
    patch = interpreter._patch_lang
    patched = set()  # of the launch that runs

    @cache
    def modules(fn):
        names = fn.__globals__.values()
        return {module for module in (language, language.core) if any(x is module for x in names)}

    def patch_once(fn):
        if modules(fn) <= patched:
            return interpreter._LangPatchScope()
        scope = patch(fn)
        patched.update(modules(fn))
        restore = scope.restore

        def restore_all():
            patched.clear()
            restore()

        scope.restore = restore_all
        return scope

    interpreter._patch_lang = patch_once
