"""Build the extension by calling CMake, which owns every compile flag (see CMakeLists.txt)."""

import os
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        source = Path(__file__).parent.resolve()
        build = Path(self.build_temp).resolve() / f"cmake-{sys.implementation.cache_tag}"
        output = Path(self.get_ext_fullpath(ext.name)).parent.resolve()
        configure = [
            "cmake",
            *("-S", str(source), "-B", str(build), "-G", "Ninja"),
            "--fresh",  # an isolated build moves its tools; never trust a cache that names them
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DDEEPREP_WERROR={os.environ.get('DEEPREP_WERROR', 'OFF')}",
            f"-DDEEPREP_CUDA={os.environ.get('DEEPREP_CUDA', 'AUTO')}",
        ]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)


setup(ext_modules=[Extension("deeprep._core", sources=[])], cmdclass={"build_ext": CMakeBuild})
