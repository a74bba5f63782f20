"""The command line: `foveal ask`, `plan`, `trace`, `info`, `new`, `pack`, `bench`, `world`, `train`, `merge`, `timestamps`,
`data`, `eval`.

Exit codes: 0; 2 for a mistake of the caller's (one line on stderr); 1 for a bug of foveal's; 130 for Ctrl-C; 141 when the
reader of stdout went away. stdout carries the answer, a table or JSON, everything else goes to stderr.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (`sys.argv` by default) and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = words[: words.index("--")] if "--" in words else words
    debug = "--debug" in options or os.environ.get("FOVEAL_DEBUG", "") not in ("", "0")
    if "--debug" in options:
        words.remove("--debug")
    # Torch's threads look for work for 3 ms after each operation, on cores the kernels' threads need by then. This makes it
    # some 50 µs (bench/threads.py); it is read when torch is loaded.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    try:
        return _run(words, debug)
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except BrokenPipeError:
        _abandon_stdout()
        return 141


def _run(words: list[str], debug: bool) -> int:
    from cyclopts import CycloptsError

    from foveal.cli.commands import app
    from foveal.errors import FovealError

    failure: BaseException
    try:
        app(words)
        sys.stdout.flush()
        return 0
    except (KeyboardInterrupt, BrokenPipeError):
        raise
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except (CycloptsError, FovealError) as error:
        failure, code, message = error, 2, f"error: {error}"
    except MemoryError as error:
        failure, code = error, 1
        message = "error: out of memory; take a smaller model, fewer or smaller pictures, or --dtype bfloat16"
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            if error.filename is None:
                _abandon_stdout()
            failure, code = error, 2
            message = f"error: {error.filename or 'the output'} could not be written: {error.strerror}; free some space"
        else:
            failure, code = error, 1
            message = (
                f"internal error: {type(error).__name__}: {str(error)[:300]}; this is a bug of foveal: please report it "
                "with the traceback that FOVEAL_DEBUG=1 shows and the output of foveal info"
            )
    if debug:
        traceback.print_exception(failure)
    _say(" ".join(message.split()))
    return code


def _abandon_stdout() -> None:
    """Drop what is still buffered for a reader that has left or a disk that is full: it must not be tried again at exit."""
    with contextlib.suppress(OSError, ValueError):  # a stdout without a descriptor has no buffer to lose
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(message: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # stderr is closed: there is nobody to tell
        print(f"foveal: {message}", file=sys.stderr, flush=True)
