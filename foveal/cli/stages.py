"""What each stage of a reply did a second, beside what this machine can do: for `ask --stats`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from foveal.cli import show
from foveal.cost import estimate

if TYPE_CHECKING:
    from foveal.generate import Stats
    from foveal.limits import Limits
    from foveal.model import Qwen3VL
    from foveal.processor import Request


@dataclass(frozen=True)
class Stage:
    """A stage's seconds and work, and the seconds its arithmetic and its reading take at the machine's limits, 0 if unknown."""

    name: str
    seconds: float
    ops: int = 0
    num_bytes: int = 0
    ops_s: float = 0.0
    bytes_s: float = 0.0

    @property
    def share(self) -> float:
        """The share of the limit that was reached: of the resource that takes longer."""
        return max(self.ops_s, self.bytes_s) / self.seconds if self.seconds > 0 else 0.0

    def row(self) -> tuple[str, str, str, str]:
        """Say it for people: name, time, speed, share of the limit."""
        if not self.ops or self.seconds <= 0:
            return self.name, show.seconds(self.seconds), "", ""
        reads = self.bytes_s > self.ops_s or (self.share == 0 and self.name == "decode")
        done, least, unit = (self.num_bytes, self.bytes_s, "B/s") if reads else (self.ops, self.ops_s, "OP/s")
        share = f"{self.share:.0%}" if self.share >= 0.1 else f"{self.share:.1%}"
        limit = f"{share} of {show.scaled(done / least, unit)}" if least else ""
        return self.name, show.seconds(self.seconds), show.scaled(done / self.seconds, unit), limit


def stages(model: Qwen3VL, request: Request, stats: Stats, measured: Limits | None) -> list[Stage]:
    """Work out the stages of a reply; `measured` is None where the machine's limits are not those of the model's device.

    Of a packed model the linears go by the native kernels' limit, the attention of prompts by float32's. Reading counts every
    weight once a pass, and in decode the cache; a mixture of experts the experts one token visits.
    """
    from foveal.generate import PREFILL_WINDOW
    from foveal.model.checkpoint import plain
    from foveal.model.quantize import num_bytes, packed_bits, step_bytes

    text, bits, tokens = model.language_model, packed_bits(model), stats.prompt_tokens
    media = [(patches.kind, patches.lengths()) for patches in request.patches]
    cost = estimate(model.config, media, tokens, new_tokens=stats.generated_tokens)
    windows, steps = -(-tokens // PREFILL_WINDOW), max(stats.generated_tokens - 1, 0)
    head = num_bytes(text.embed_tokens if model.lm_head is None else model.lm_head)
    in_view = steps * tokens + steps * (steps + 1) // 2
    read = {
        "encode": num_bytes(model.visual) if media else 0,
        "prefill": windows * num_bytes(text.layers) + head,
        "decode": steps * step_bytes(model) + in_view * model.config.text.kv_bytes_per_token(plain(model.new_cache(1).dtype)),
    }
    own = plain(model.dtype)  # of what is not packed
    work = {  # operations by path
        "encode": [
            (cost.encode.blocks + cost.encode.mergers, "8 bits" if bits else own),
            (cost.encode.patch_embedding + cost.encode.attention, own),
        ],
        "prefill": [
            (cost.prefill.layers + cost.prefill.head, f"{bits} bits" if bits else own), (cost.prefill.attention, own),
        ],
        "decode": [(cost.answer.total, f"{bits} bits" if bits else own)],
    }  # fmt: skip
    if measured is not None and own not in measured.ops_per_s:  # float16 has no limit
        measured = None
    took = {"encode": stats.encode_s, "prefill": stats.prefill_s, "decode": stats.decode_s}
    out = [Stage("prepare", stats.prepare_s)]
    for name, seconds in took.items():
        least = (0.0, 0.0)
        if measured is not None:
            least = sum(ops / measured.peak(path) for ops, path in work[name]), read[name] / measured.read_bytes_per_s
        out.append(Stage(name, seconds, sum(ops for ops, _ in work[name]), read[name], *least))
    return out
