"""A checkpoint of the recipe is replaced at once: no kill leaves half of one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

from foveal.train import checkpoint


def test_a_kill_while_saving_loses_nothing(tmp_path: Path) -> None:
    """Saves without end are killed at different times; the file is whole every time, and of one save."""
    code = (
        "import sys, torch\nfrom pathlib import Path\nfrom foveal.train import checkpoint\n"
        "for step in range(10**9):\n"
        "    tensors = {str(i): torch.full((200_000,), float(step)) for i in range(8)}\n"
        "    checkpoint.save(Path(sys.argv[1]), tensors, {'step': step})\n"
        "    print(step, flush=True)\n"
    )
    for wait in (1, 4):
        with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            for _ in range(wait):
                child.stdout.readline()
            os.kill(child.pid, signal.SIGKILL)
            rest = child.stdout.read().split()
        tensors, state = checkpoint.load(tmp_path)
        assert state["step"] >= (int(rest[-1]) if rest else wait - 1)
        assert all(torch.equal(t, torch.full((200_000,), float(state["step"]))) for t in tensors.values())
