"""What the kernels are compiled for."""

from functools import cache

from ..env import triton_interpreter


@cache
def arch() -> str:
    """"gfx942", "gfx950", "sm_90", or "interpreter"."""
    if triton_interpreter():
        return "interpreter"
    from triton.runtime import driver

    target = driver.active.get_current_target()
    return target.arch.split(":")[0] if target.backend == "hip" else f"sm_{target.arch}"


def dies(name: str) -> int:
    """Dies with a cache of their own, to which workgroups go in turn: the XCDs of an MI300X or MI355X."""
    return 8 if name in ("gfx942", "gfx950", "interpreter") else 1
