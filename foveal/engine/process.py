"""What an engine asks of the whole process while it serves: short turns for its threads, and no long collections.

A step takes the interpreter's lock hundreds of times: every operation of torch and every kernel gives it back. Where a worker
runs Python meanwhile it keeps the lock for a whole switch interval each time, 5 ms as Python comes: several steps of a small
model. And a full collection looks at everything that was ever imported, a tenth of a second; what is there when the first
engine starts to serve is left out until the last one ends.
"""

from __future__ import annotations

import gc
import sys
import threading

SWITCH_S = 5e-5  # that a thread may keep the interpreter's lock while another waits for it

_lock = threading.Lock()
_serving = 0
_before = 0.0


def begin_serving() -> None:
    """Ask for it; as often as this was called `end_serving` must be, and then everything is as it was."""
    global _serving, _before
    with _lock:
        _serving += 1
        if _serving == 1:
            _before = sys.getswitchinterval()
            sys.setswitchinterval(min(SWITCH_S, _before))
            gc.collect(1)
            gc.freeze()


def end_serving() -> None:
    """Take it back, once nobody serves any more."""
    global _serving
    with _lock:
        _serving -= 1
        if _serving == 0:
            sys.setswitchinterval(_before)
            gc.unfreeze()
