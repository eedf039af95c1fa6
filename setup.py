"""Native parts of the build; everything declarative is in pyproject.toml. No network, no shell commands."""

import glob
import os
import platform
import shlex
import shutil
import sys

from setuptools import setup


def compiler() -> str | None:
    """The C++ compiler that the build will call, if there is one."""
    named = os.environ.get("CXX")
    names = [shlex.split(named)[0]] if named else ["c++", "g++", "clang++"]
    return next(filter(None, map(shutil.which, names)), None)


def cpu_flags() -> list[str]:
    """AVX2 and FMA on x86-64, unless CXXFLAGS or CFLAGS choose another -march."""
    chosen = os.environ.get("CXXFLAGS", "") + os.environ.get("CFLAGS", "")
    portable = platform.machine().lower() not in ("x86_64", "amd64")
    return [] if portable or "-march" in chosen else ["-march=x86-64-v3"]


def extensions() -> list:
    if compiler() is None:
        print("blockdraft: no C++ compiler found (set CXX, or install g++ or clang++): installing without native code; "
              "every op runs on its reference backend", file=sys.stderr)
        return []
    from pybind11.setup_helpers import Pybind11Extension

    flags = ["-O3", "-ffp-contract=fast", *cpu_flags()]
    probe = Pybind11Extension("blockdraft._probe", ["csrc/probe/probe.cpp"], cxx_std=17,
                              extra_compile_args=[*flags, "-pthread"], extra_link_args=["-pthread"])
    return [probe, *torch_extensions(flags)]


def torch_extensions(flags: list[str]) -> list:
    """The ops, against libtorch's stable ABI (2.10)."""
    try:
        from torch.utils.cpp_extension import CppExtension
    except ImportError:
        print("blockdraft: torch is not importable while building (use --no-build-isolation): installing without the C++ "
              "ops; every op runs on its reference backend", file=sys.stderr)
        return []
    import torch

    sources, macros = sorted(glob.glob("csrc/*.cpp")), [("TORCH_TARGET_VERSION", "0x020a000000000000")]
    common = ["-std=c++20", "-fno-math-errno"]
    rocm = {}
    if torch.version.hip:  # CUDAExtension would hipify, and may overwrite, sources that are HIP already
        from torch.utils.cpp_extension import ROCM_HOME

        os.environ.setdefault("PYTORCH_ROCM_ARCH", "gfx942;gfx950")
        sources += sorted(glob.glob("csrc/*.hip"))
        macros += [("BLOCKDRAFT_HIP", None), ("__HIP_PLATFORM_AMD__", None)]
        rocm = dict(include_dirs=[f"{ROCM_HOME}/include"], library_dirs=[f"{ROCM_HOME}/lib"],
                    libraries=["amdhip64", "c10_hip", "torch_hip"])
    return [CppExtension("blockdraft._ops", sources, define_macros=macros, depends=glob.glob("csrc/**/*.h", recursive=True),
                         extra_compile_args={"cxx": [*common, *flags], "nvcc": [*common, "-O3"]}, **rocm)]


def commands() -> dict:
    try:
        from torch.utils.cpp_extension import BuildExtension
    except ImportError:
        return {}
    return {"build_ext": BuildExtension}


setup(ext_modules=extensions(), cmdclass=commands())
