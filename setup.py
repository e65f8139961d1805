"""The one part of the build that setup.cfg can't say: native operators, where they can be compiled.

They are optional: without a compiler the package builds and works, and artifacts run on ONNX
Runtime's own operators.
"""

from __future__ import annotations

from setuptools import Extension, setup

_FOLDER = "backends/native"
_SOURCES = ("abi", "features", "kernels", "library", "linear", "rowwise")
_HEADERS = (
    *("abi.h", "features.h", "kernels.h", "kernels.inc", "lanes.h", "linear.h", "rowwise.h"),
    "some.inc",
)

setup(
    # Otherwise the installer's own script is taken for it, and this one packed with the modules.
    script_name="setup.py",
    ext_modules=[
        Extension(
            "rankc.backends.native.operators",
            [f"{_FOLDER}/{name}.cpp" for name in _SOURCES],
            depends=[f"{_FOLDER}/{name}" for name in _HEADERS],
            language="c++",
            # GCC 12 and 13 warn of uninitialized values in their own headers, page after page.
            extra_compile_args=[
                *("-std=c++17", "-O3", "-g0", "-fvisibility=hidden"),
                "-Wno-maybe-uninitialized",
            ],
            optional=True,
            # It is a library for ONNX Runtime, and knows nothing of Python's version.
            py_limited_api=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
