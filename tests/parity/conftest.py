"""Print, at the end of the run, how far from the reference every stage came."""

from __future__ import annotations

import pytest

from tests.parity.runs import WORST


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not WORST.stages:
        return
    terminalreporter.section("parity with transformers, float32: worst difference / largest reference value")
    for stage, error in sorted(WORST.stages.items()):
        terminalreporter.write_line(f"{stage:<34} {error:.1e}   (bound {WORST.bound:.0e})")
