"""Numbers for people: bytes, operations and durations with the unit that suits their size."""

from __future__ import annotations

_SI = ("", "k", "M", "G", "T", "P", "E")


def scaled(value: float, unit: str) -> str:
    """Write a number in thousands, millions, ...: 4.26 GB, 812 MFLOP, 37 B."""
    power = 0
    while abs(value) >= 999.5 and power < len(_SI) - 1:
        value /= 1000
        power += 1
    digits = f"{value:.0f}" if power == 0 or value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    return f"{digits} {_SI[power]}{unit}"


def num_bytes(value: float) -> str:
    return scaled(value, "B")


def flops(value: float) -> str:
    return scaled(value, "FLOP")


def seconds(value: float) -> str:
    """Write a duration: 840 µs, 12.3 ms, 4.56 s."""
    if value < 1e-3:
        return f"{value * 1e6:.0f} µs"
    if value < 1:
        return f"{value * 1e3:.3g} ms" if value < 0.1 else f"{value * 1e3:.0f} ms"
    return f"{value:.2f} s" if value < 100 else f"{value:.0f} s"


def counted(count: int, noun: str) -> str:
    """Write how many of a thing: 1 clip, 2 clips, 5,727 clips."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
