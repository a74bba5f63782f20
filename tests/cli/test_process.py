"""The command line as a process of its own: start-up, Ctrl-C, a reader that leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

# Sampled so hot that no loop guard ends it: it talks until somebody stops it.
ENDLESS = ["--temperature", "9", "--seed", "1", "--max-tokens", "1900"]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "foveal", *words]


def start(*words: str) -> subprocess.Popen[bytes]:
    """Start foveal as a shell would. Tests that run in the background are deaf to Ctrl-C, and so would be what they start."""
    environment: dict[str, Any] = {**os.environ, "OMP_NUM_THREADS": "1"}
    hear = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    pipe = subprocess.PIPE
    return subprocess.Popen(command(*words), stdout=pipe, stderr=pipe, env=environment, preexec_fn=hear)


def processor_s(*words: str) -> float:
    """Return the least time on the processor of three runs: a machine that does other things makes each longer."""
    best = 9.0
    for _ in range(3):
        before = os.times()
        assert subprocess.run(words, capture_output=True).returncode == 0
        after = os.times()
        best = min(best, after.children_user + after.children_system - before.children_user - before.children_system)
    return best


def test_help_starts_quickly() -> None:
    """0.2 to 0.3 s on an idle machine, most of it the libraries that print it; a busy one takes longer for these, too."""
    libraries = processor_s(sys.executable, "-c", "import cyclopts, rich.console, rich.table")
    took = processor_s(*command("--help"))
    assert took < max(0.3, 2.5 * libraries), f"foveal --help took {took:.2f} s, its libraries {libraries:.2f} s"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from foveal.cli import main\n"
        "assert main(['ask', '--help']) == 0\n"
        "heavy = {'torch', 'numpy', 'PIL', 'av', 'tokenizers', 'jinja2', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_an_answer_does_not_wait_for_the_compiler(checkpoint: str) -> None:
    """Building a module on the meta device makes torch import its compiler, 1.5 s that nothing here needs."""
    code = (
        "import sys; from foveal.cli import main\n"
        f"assert main(['ask', '-m', {checkpoint!r}, 'q', '--max-tokens', '2']) == 0\n"
        "assert 'torch' in sys.modules and 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_ctrl_c_ends_with_130(checkpoint: str) -> None:
    with start("ask", "-m", checkpoint, "q", *ENDLESS) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(1)  # it is generating
        process.send_signal(signal.SIGINT)
        err = process.stderr.read().decode()
        process.stdout.close()
        assert process.wait(30) == 130
    assert "Traceback" not in err and err.strip() == "foveal: interrupted"


def test_a_reader_that_leaves_is_no_error(checkpoint: str) -> None:
    with start("ask", "-m", checkpoint, "q", *ENDLESS) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 141


def test_a_closed_pipe_does_not_break_tables(checkpoint: str) -> None:
    with start("info", checkpoint, "--json") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 141


@pytest.mark.parametrize(("words", "code"), [(("ask", "gone.png", "q"), 2), (("info", "8B", "--json"), 0)])
def test_exit_codes_leave_the_process(words: tuple[str, ...], code: int) -> None:
    assert subprocess.run(command(*words), capture_output=True).returncode == code


def test_no_colour_in_a_pipe_or_when_asked() -> None:
    environment: dict[str, Any] = {**os.environ, "NO_COLOR": "1", "FORCE_COLOR": ""}
    done = subprocess.run(command("info", "8B"), capture_output=True, env=environment)
    assert done.returncode == 0 and b"\x1b[" not in done.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the device that is always full")
def test_a_full_disk_is_said_in_one_line(checkpoint: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(command("ask", "-m", checkpoint, "q", "--max-tokens", "3"), stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr.decode() == "foveal: error: the output could not be written: No space left on device; free some space\n"
