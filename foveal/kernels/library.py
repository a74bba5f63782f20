"""The compiled library: found beside this file, or compiled once for this user, or missing with the reason.

`python -m foveal.kernels.library` compiles it beside this file, for a wheel or an image without a compiler.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
from pathlib import Path

from foveal.errors import FovealError

SOURCE = Path(__file__).with_name("foveal_kernels.c")
SOURCES = (SOURCE, *(SOURCE.with_name(name) for name in ("attention.c", "cache.c")))
# No flag for an instruction set: the source compiles its loops for each and asks the processor. Without contraction every
# path rounds alike.
FLAGS = ("-O3", "-std=c11", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno",
         "-fno-trapping-math")  # fmt: skip
INTERFACE = 7
_REMEDY = (
    "install a C compiler (Debian, Ubuntu: apt install gcc; Fedora: dnf install gcc; macOS: xcode-select --install) "
    "or name one in the environment variable CC"
)


def file_name() -> str:
    """Name the library of these sources, these flags and this platform."""
    key = hashlib.sha256()
    for source in (*SOURCES, SOURCE.with_name("common.h")):
        key.update(source.read_bytes())
    key.update(repr((FLAGS, sysconfig.get_platform())).encode())
    return f"foveal_kernels-{key.hexdigest()[:16]}.so"


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    if base is None and sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "foveal" / "kernels"
    return Path(base or Path.home() / ".cache") / "foveal" / "kernels"


def _compiler() -> list[str]:
    if named := shlex.split(os.environ.get("CC", "")):
        return named
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    raise FovealError(f"no C compiler was found; {_REMEDY}")


def compile_library(target: Path) -> None:
    """Compile into a file of its own and move it into place whole: two processes may do this at once."""
    compiler = _compiler()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(suffix=".so", dir=target.parent)
    except OSError as error:
        raise FovealError(f"{target.parent} cannot be written ({error}); set XDG_CACHE_HOME to a folder that can") from None
    os.close(handle)
    try:
        done = subprocess.run(
            [*compiler, *FLAGS, *map(str, SOURCES), "-o", name, "-lm"],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["no message"])[0]
            raise FovealError(f"{compiler[0]} could not compile the kernels: {said}; {_REMEDY}")
        os.chmod(name, 0o755)
        os.replace(name, target)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FovealError(f"{compiler[0]} could not compile the kernels: {error}; {_REMEDY}") from None
    finally:
        Path(name).unlink(missing_ok=True)


def _open() -> ctypes.CDLL:
    if sys.platform == "win32":
        raise FovealError("the native kernels need POSIX threads, which Windows lacks; torch does the work instead")
    name = file_name()
    beside, cached = SOURCE.with_name(name), cache_folder() / name
    if beside.exists():
        return _declare(ctypes.CDLL(str(beside)))
    if cached.exists():
        try:
            return _declare(ctypes.CDLL(str(cached)))
        except OSError:  # a damaged file: make it again
            cached.unlink(missing_ok=True)
    compile_library(cached)
    return _declare(ctypes.CDLL(str(cached)))


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Tell ctypes the signatures of the sources' last sections."""
    pointer, number, count, real = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
    signatures = {
        "foveal_interface": (),
        "foveal_path_name": (number,),
        "foveal_get_path": (),
        "foveal_set_path": (number,),
        "foveal_get_threads": (),
        "foveal_set_threads": (number,),
        "foveal_pack": (pointer, number, number, count, count, count, pointer, pointer, pointer),
        "foveal_take_rows": (number, pointer, pointer, count, count, pointer, count, pointer),
        "foveal_quantise_rows": (pointer, pointer, real, count, count, count, pointer, pointer, pointer),
        "foveal_matmul": (
            number, pointer, pointer, pointer, pointer, count, count, pointer, pointer, pointer, count, pointer, number,
            pointer, count,
        ),
        "foveal_attend": (
            pointer, pointer, pointer, number, pointer, pointer, count, count, count, count, count, count, count, count, real,
            pointer,
        ),
        "foveal_turn": (pointer, pointer, real, pointer, pointer, count, count, count, pointer),
        "foveal_quantise_cache": (pointer, count, count, count, count, count, pointer, pointer, count, count),
        "foveal_frames_sizes": (count, pointer),
        "foveal_frames_pack": (pointer, pointer, *(count,) * 4, *(pointer,) * 3, count, count, *(pointer,) * 4),
        "foveal_frames_attend": (
            pointer, *(count,) * 4, *(pointer,) * 4, count, number, real, *(pointer,) * 5, count,
        ),
        "foveal_read": (pointer, count),
        "foveal_step_scratch": (pointer, count),
        "foveal_step": (pointer, pointer, count, pointer, pointer, pointer, pointer, pointer),
    }  # fmt: skip
    for name, arguments in signatures.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ctypes.c_int
    library.foveal_path_name.restype = ctypes.c_char_p
    library.foveal_step_scratch.restype = count
    if library.foveal_interface() != INTERFACE:
        raise FovealError("the compiled kernels are of another version of foveal; reinstall it")
    library.foveal_set_threads(
        min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 256)
    )
    return library


_lock = threading.Lock()


@functools.lru_cache(maxsize=1)
def _load() -> tuple[ctypes.CDLL | None, str]:
    try:
        return _open(), ""
    except (FovealError, OSError, AttributeError) as error:
        return None, str(error)


def load() -> tuple[ctypes.CDLL | None, str]:
    """Return the library, or None and the reason; decided once a process."""
    with _lock:
        return _load()


def native() -> ctypes.CDLL:
    """Return the library. Raise FovealError with the reason where it is not there."""
    library, why = load()
    if library is None:
        raise FovealError(f"the native kernels are not available: {why}")
    return library


def done(status: int, what: str) -> None:
    """Raise the error a call's status stands for."""
    if status == 1:
        raise FovealError(f"{what} hold NaN or infinity, which have no form in integers")
    if status == 2:
        raise FovealError(f"{what} are too large: a group's scale would not fit float16 (65504)")
    assert status == 0, f"the kernels refused an argument (status {status})"


if __name__ == "__main__":
    compile_library(SOURCE.with_name(file_name()))
    print(SOURCE.with_name(file_name()))
