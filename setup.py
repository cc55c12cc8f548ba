"""Compiles the processor's kernels if a C++ compiler is there; without one the package works, too.

Everything else about the package stands in pyproject.toml. Each instruction set is a library of
its own, and :mod:`llavakit.kernels.native` loads the best one that the processor has.
"""

import platform
import sys

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

COMMON = [
    "-O3",
    "-std=c++17",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-Wno-psabi",
    "-Wno-unknown-pragmas",
    "-g0",
]
SETS = {"any": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    avx2 = ["-mavx2", "-mfma", "-mf16c"]
    wide = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"]
    SETS |= {"avx2": avx2, "avx512": [*avx2, *wide]}
# Clang on macOS has no OpenMP of its own; its kernels run on one thread.
THREADS = ["-fopenmp"] if sys.platform == "linux" else []


class Build(build_ext):
    """Plain shared libraries: loaded by ctypes, they are no modules and know no Python version."""

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []

    def get_ext_filename(self, fullname: str) -> str:
        return f"{fullname.replace('.', '/')}.so"


class Wheel(bdist_wheel):
    """One wheel of a platform for all Pythons: no library in it is linked against one."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            f"llavakit.kernels._cpu_{name}",
            ["src/llavakit/kernels/cpu.cpp"],
            extra_compile_args=[*COMMON, *flags, *THREADS],
            extra_link_args=THREADS,
            optional=True,
        )
        for name, flags in SETS.items()
    ]
    if sys.platform != "win32"
    else [],
    cmdclass={"build_ext": Build, "bdist_wheel": Wheel},
)
