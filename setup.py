"""The part of the build that pyproject.toml cannot say: compile the kernels into the wheel, where a C compiler is found.

Without one the wheel is as it would be for any platform, and foveal compiles the kernels at their first use or does without.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


def library() -> ModuleType:
    """Load foveal/kernels/library.py alone: its package needs NumPy, which a build has not."""
    sys.path.insert(0, str(ROOT))
    spec = importlib.util.spec_from_file_location("foveal_build_library", ROOT / "foveal" / "kernels" / "library.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildWithKernels(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode or sys.platform == "win32":
            return
        build = library()
        target = Path(self.build_lib) / "foveal" / "kernels" / build.file_name()
        try:
            build.compile_library(target)
        except build.FovealError as error:  # no compiler, or one that fails: the wheel is whole without it
            print(f"foveal: building without native kernels: {error}", file=sys.stderr)


class PlatformWheel(bdist_wheel):
    """A wheel that holds a library is for one platform, but for every Python 3."""

    def run(self) -> None:
        self.run_command("build")
        if list(Path(self.get_finalized_command("build").build_lib).glob("foveal/kernels/*.so")):
            self.root_is_pure, self.distribution.has_ext_modules = False, lambda: True
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        return ("py3", "none", platform) if not self.root_is_pure else (python, abi, platform)


setup(distclass=Distribution, cmdclass={"build_py": BuildWithKernels, "bdist_wheel": PlatformWheel})
