"""Native parts of the build; everything declarative is in pyproject.toml. No network, no shell commands."""

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

    return [Pybind11Extension("blockdraft._probe", ["csrc/probe/probe.cpp"], cxx_std=17,
                              extra_compile_args=["-O3", "-ffp-contract=fast", "-pthread", *cpu_flags()],
                              extra_link_args=["-pthread"])]


setup(ext_modules=extensions())
