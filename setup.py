"""Native parts of the build; everything declarative is in pyproject.toml. No network, no shell
commands."""

import glob
import os
import platform
import shlex
import shutil
import sys

from setuptools import Extension, setup

# One wheel serves Python 3.10 and every later one: modules keep to the stable interfaces of Python
# and of libtorch (2.10).
LIMITED = ("Py_LIMITED_API", "0x030a0000")  # py_limited_api in a CppExtension implies it


def compiler() -> str | None:
    """The C++ compiler that the build will call, if there is one."""
    named = os.environ.get("CXX")
    names = [shlex.split(named)[0]] if named else ["c++", "g++", "clang++"]
    return next(filter(None, map(shutil.which, names)), None)


def variants() -> dict[str, list[str]]:
    """What to build the CPU's code for, by suffix of the modules; blockdraft.native takes the one
    for the CPU that it finds. AVX2 and AVX-512 on x86-64, unless CXXFLAGS or CFLAGS choose a
    -march."""
    flags = f"{os.environ.get('CFLAGS', '')} {os.environ.get('CXXFLAGS', '')}".split()
    chosen = [flag for flag in flags if flag.startswith("-march=")]  # not all builders pass both on
    if chosen:
        return {"": chosen[-1:]}
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return {"": []}
    return {"": ["-march=x86-64-v3"], "_avx512": ["-march=x86-64-v4"]}


def extensions() -> list:
    if compiler() is None:
        print(
            "blockdraft: no C++ compiler found (set CXX, or install g++ or clang++): installing "
            "without native code; every op runs on its reference backend",
            file=sys.stderr,
        )
        return []
    built = []
    for suffix, march in variants().items():
        flags = ["-O3", "-ffp-contract=fast", "-fvisibility=hidden", *march]
        built += [probe(suffix, flags), *torch_extensions(suffix, flags)]
    return built


def probe(suffix: str, flags: list[str]) -> Extension:
    return Extension(
        f"blockdraft._probe{suffix}",
        ["csrc/probe/probe.cpp"],
        include_dirs=[os.path.abspath("csrc")],
        depends=["csrc/tile/cpu/amx.h"],
        define_macros=[("BLOCKDRAFT_MODULE", f"_probe{suffix}"), LIMITED],
        extra_compile_args=["-std=c++20", *flags, "-pthread"],
        extra_link_args=["-pthread"],
        py_limited_api=True,
    )


def torch_extensions(suffix: str, flags: list[str]) -> list:
    """The ops, against libtorch's stable ABI (2.10). With a GPU's kernels in it there is one
    variant."""
    try:
        from torch.utils.cpp_extension import CppExtension
    except ImportError:
        print(
            "blockdraft: torch is not importable while building (use --no-build-isolation): "
            "installing without the C++ ops; every op runs on its reference backend",
            file=sys.stderr,
        )
        return []
    import torch

    if torch.version.hip and suffix:
        return []
    sources = ["csrc/bindings.cpp", *sorted(glob.glob("csrc/ops/*/*.cpp"))]
    macros = [
        ("TORCH_TARGET_VERSION", "0x020a000000000000"),
        ("BLOCKDRAFT_MODULE", f"_ops{suffix}"),
    ]
    common = ["-std=c++20", "-fno-math-errno"]
    rocm = dict(include_dirs=[os.path.abspath("csrc")])
    # CUDAExtension would hipify, and may overwrite, sources that are HIP already
    if torch.version.hip:
        from torch.utils.cpp_extension import ROCM_HOME

        if ROCM_HOME is None:
            raise SystemExit("blockdraft: expected ROCm's headers for a ROCm torch (set ROCM_HOME)")
        os.environ.setdefault("PYTORCH_ROCM_ARCH", "gfx942;gfx950")
        sources += sorted(glob.glob("csrc/ops/*/hip.hip"))
        macros += [("BLOCKDRAFT_HIP", None), ("__HIP_PLATFORM_AMD__", None)]
        rocm = dict(
            include_dirs=[os.path.abspath("csrc"), f"{ROCM_HOME}/include"],
            library_dirs=[f"{ROCM_HOME}/lib"],
            libraries=["amdhip64", "c10_hip", "torch_hip"],
        )
    return [
        CppExtension(
            f"blockdraft._ops{suffix}",
            sources,
            define_macros=macros,
            depends=glob.glob("csrc/**/*.h", recursive=True),
            extra_compile_args={"cxx": [*common, *flags], "nvcc": [*common, "-O3"]},
            py_limited_api=True,
            **rocm,
        )
    ]


def commands() -> dict:
    try:
        from torch.utils.cpp_extension import BuildExtension
    except ImportError:
        return {}

    class Build(BuildExtension):
        def run(self):
            """One extension after the other; and what an earlier build left beside the sources, of
            a variant that this one lacks, must not be found."""
            self.parallel = None
            names = [self.get_ext_filename(extension.name) for extension in self.extensions]
            for path in glob.glob("python/blockdraft/_*.so") if self.inplace else []:
                if os.path.join("blockdraft", os.path.basename(path)) not in names:
                    os.remove(path)
            super().run()

        def build_extension(self, extension):
            """Variants are the same sources: their objects must not meet."""
            shared, self.build_temp = self.build_temp, os.path.join(self.build_temp, extension.name)
            try:
                super().build_extension(extension)
            finally:
                self.build_temp = shared

    return {"build_ext": Build}


setup(
    ext_modules=extensions(),
    cmdclass=commands(),
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
