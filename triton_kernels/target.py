"""What the kernels are compiled for."""

from functools import cache

from ..env import triton_interpreter


@cache
def arch() -> str:
    """ "gfx942", "gfx950", "sm_90", or "interpreter"."""
    if triton_interpreter():
        return "interpreter"
    from triton.runtime import driver

    target = driver.active.get_current_target()
    return target.arch.split(":")[0] if target.backend == "hip" else f"sm_{target.arch}"


def dies(name: str) -> int:
    """How many dies have a cache of their own and get workgroups in turn: the XCDs of an MI300X or
    MI355X."""
    return 8 if name in ("gfx942", "gfx950", "interpreter") else 1


def scan_options(name: str, threads: int = 256) -> dict:
    """Compiler options for kernels that scan long rows. Exponentials below 2^-126 may be 0."""
    if name.startswith("gfx"):
        return dict(num_warps=threads // 64, allow_flush_denorm=True)
    return dict(num_warps=threads // 32)
