"""Which precision a model has on a CPU when nobody names one: the fastest here, by measurement, of what is accurate enough."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from foveal.config import ModelConfig
from foveal.limits import PATHS, Limits, limits

# The table of bench/quantized.py decides which widths may be taken unasked: those whose tokens agree with float32's at least
# so often on the embedded model. In bench/results 8 bits agree in 98.98 % of the tokens and 4 bits in 97.16 %, so none may.
# float32 always may, and bfloat16 where it is what the checkpoint was published in.
AGREEMENT = 0.995
ACCURATE_BITS: tuple[int, ...] = ()

SMALL = 100_000_000  # weights up to which nobody waits for any of them, and nothing need be measured
STAGES = {"encode": 1200, "prefill": 364, "decode": 1}  # rows of a linear in each for one picture of 640 x 480 and a question
ANSWER = 64  # tokens of an answer, for weighing decode against the rest
GAIN = 0.8  # of float32's time at most: less is lost in what a measurement is off by
BYTES = {"float32": 4.0, "bfloat16": 2.0, "8 bits": 34 / 32, "4 bits": 18 / 32}  # a weight, its share of the scales included


@dataclass(frozen=True)
class Choice:
    """A path of `limits.PATHS`, and why in words."""

    path: str
    why: str

    @property
    def bits(self) -> int | None:
        return int(self.path[0]) if self.path.endswith("bits") else None

    @property
    def dtype(self) -> str:
        """Precision of all that is not packed."""
        return "float32" if self.bits else self.path


def choose(config: ModelConfig, *, packs: bool = True) -> Choice:
    """Choose for a model on a CPU. `packs`: whether weights may be packed."""
    if config.num_parameters <= SMALL:
        return Choice("float32", "a model this small is quick in any")
    return choose_by(limits(), config, packs=packs)


def choose_by(measured: Limits, config: ModelConfig, *, packs: bool = True) -> Choice:
    """Choose by given limits, whatever the model's size; float32 where those were disturbed."""
    if not measured.quiet:
        return Choice("float32", "this machine is too busy to measure what is faster")
    allowed = ["float32"] + ["bfloat16"] * (config.dtype == "bfloat16")
    allowed += [f"{bits} bits" for bits in ACCURATE_BITS if packs]
    times = {path: answer_s(measured, config, path) for path in allowed if path in measured.ops_per_s}
    best = min(times, key=lambda path: times[path])
    share = times[best] / times["float32"]
    if best != "float32" and share <= GAIN:
        return Choice(best, f"takes {share:.0%} of float32's time here")
    return Choice("float32", f"the fastest here of {' and '.join(times)}" if len(times) > 1 else "fewer bits change answers")


def answer_s(measured: Limits, config: ModelConfig, path: str) -> float:
    """Estimate the seconds of an answer of ANSWER tokens about one picture, the linears alone."""
    weights = {
        "encode": config.vision.num_parameters, "prefill": config.text.num_active_parameters,
        "decode": ANSWER * config.num_active_parameters,
    }  # fmt: skip
    return sum(weights[stage] * weight_s(measured, path, rows) for stage, rows in STAGES.items())


def weight_s(measured: Limits, path: str, rows: int) -> float:
    """Estimate the seconds one weight costs in a product with so many rows: by arithmetic or by memory, what takes longer."""
    return max(2 * rows / measured.speed(path, rows), BYTES[path] / measured.read_bytes_per_s)


def fastest(measured: Limits, rows: int, among: Iterable[str] = PATHS) -> str:
    """Name the fastest path for so many rows, accurate or not."""
    return min((path for path in among if path in measured.ops_per_s), key=lambda path: weight_s(measured, path, rows))
