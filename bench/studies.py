"""Three studies on small decoders that are trained alike but for one thing: timestamps, DeepStack taps, M-RoPE.

usage: python bench/studies.py [--work runs/studies] [--steps 300] [--seeds 2] [--arms "no taps;taps spread"] [--keep]

The shipped encoder is frozen and has seen everything once (study_data.py); every arm's decoder begins anew, from the same
random numbers, and learns from the same examples in the same order for as many steps. Each arm and seed is a folder in --work:
what is finished is not done again, what was interrupted goes on, and more --seeds add to what is there. Prints a table of all
arms that are finished and, last, one JSON line; --keep writes bench/results/DATE-studies.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.study_data import CLIP_KINDS, PICTURE_KINDS, Subset, prepared, stamped_tokenizer, wanted
from foveal.batch import Batch, VisionTokens
from foveal.config import RopeConfig, TextConfig
from foveal.evaluate.bootstrap import difference, ratio
from foveal.evaluate.run import write_text
from foveal.model.attention import KVCache
from foveal.model.rope import rotate
from foveal.model.text import TextModel
from foveal.tokenizer import Tokenizer
from foveal.train import checkpoint
from foveal.train.data import IGNORE, Example
from foveal.train.evidence import PLACES, Evidence
from foveal.train.loop import answer_shares
from foveal.train.optimiser import MasterOptimiser, schedule
from foveal.world import score

RESULTS = Path(__file__).parent / "results"
WIDTH, DEPTH, HEADS, KV_HEADS, HEAD, INNER = 96, 6, 4, 2, 32, 256
MOST = 12  # tokens of an answer
BATCH, LR, MUON_LR = 16, 2e-3, 0.02
SMALL_PX = 18  # of a text's height in the picture, before it is enlarged


@dataclass(frozen=True)
class Arm:
    """What differs. taps: the decoder layers after which the encoder's three are added; () leaves them out."""

    world: str
    stamps: str = "text"
    taps: tuple[int, ...] = (0, 1, 2)
    interleaved: bool = True


ARMS = {
    "released, pictures": Arm("pictures"),
    "no taps": Arm("pictures", taps=()),
    "taps spread": Arm("pictures", taps=(0, 2, 4)),
    "released, clips": Arm("clips"),
    "timestamp tokens": Arm("clips", stamps="tokens"),
    "blocked M-RoPE": Arm("clips", interleaved=False),
}
EXAMS = {"clips": ("clips-test", "clips-held", "clips-long"), "pictures": ("pictures-test",)}


class Decoder(nn.Module):
    """A TextModel whose vision rows come from the frozen encoder through a Linear for the main rows and each tap."""

    def __init__(self, arm: Arm, vocabulary: int, width_in: int, scale: Tensor) -> None:
        super().__init__()
        rope = RopeConfig(theta=10000.0, mrope_section=(6, 5, 5), interleaved=arm.interleaved)
        config = TextConfig(
            vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=DEPTH,
            num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD, max_position_embeddings=4096, rope=rope,
        )  # fmt: skip
        self.language_model = TextModel(config, arm.taps)
        self.adapters = nn.ModuleList(nn.Linear(width_in, WIDTH) for _ in range(1 + len(arm.taps)))
        self.scale = scale  # (1 + I,): the root mean square of the cached rows

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fill each tensor from a stream of its own name, so that arms begin alike wherever they have the same tensors."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1.0)
            else:
                generator = torch.Generator().manual_seed(seed * 1_000_003 + sum(map(ord, name)))
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, 0.02, generator=generator))

    def see(self, tokens: Tensor) -> VisionTokens:
        """Adapt cached rows (1 + I, V, D)."""
        rows = tokens.float() / self.scale[:, None, None]
        main, *taps = (adapter(rows[i]) for i, adapter in enumerate(self.adapters))
        stacked = torch.stack(taps) if taps else main.new_empty(0, *main.shape)
        return VisionTokens(main, stacked, torch.zeros(len(main), 3, dtype=torch.long))

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.language_model.embed_tokens.weight)


class Quick(Evidence):
    """Evidence for looks of one part each, all of a batch in one product; a small decoder would spend its time on the loop."""

    def amiss(self, examples: Sequence[Example]) -> Tensor:
        heard, total, weight = self.listener.take(), torch.zeros(()), 0.0
        lengths = np.array([len(e.labels) for e in examples])
        starts, longest = np.cumsum(lengths) - lengths, int(lengths.max())
        spread = torch.from_numpy(starts[:, None] + np.minimum(np.arange(longest), lengths[:, None] - 1))
        for which, layer in self.layers.items():
            found = [(i, look) for i, e in enumerate(examples) for look in e.looks if look.layer == which]
            if not found:
                continue
            module, (x, (cos, sin), *_) = self.attention[layer], heard[layer][0]
            owner = torch.tensor([i for i, _ in found])
            heads = torch.tensor([look.head for _, look in found])
            rows = torch.from_numpy(starts)[owner] + torch.tensor([look.row for _, look in found])
            shown = torch.zeros(len(found), longest, dtype=torch.bool)
            for i, (_, look) in enumerate(found):
                (part,) = look.parts
                shown[i, torch.from_numpy(part)] = True
            later = torch.arange(longest) > (rows - torch.from_numpy(starts)[owner])[:, None]
            q = rotate(module.q_norm(module.q_proj(x[rows]).unflatten(1, (-1, HEAD))), cos[rows], sin[rows])
            k = rotate(module.k_norm(module.k_proj(x).unflatten(1, (-1, HEAD))), cos, sin)[spread]  # (B, longest, G, H)
            asked, per = q[torch.arange(len(found)), heads], q.shape[1] // k.shape[2]
            scores = torch.einsum("nd,nld->nl", asked, k[owner, :, heads // per]) / HEAD**0.5
            logs = scores.masked_fill(later, -torch.inf).log_softmax(-1)
            share = torch.tensor([look.weight for _, look in found])
            total = total - logs.masked_fill(~shown, -torch.inf).logsumexp(-1) @ share
            weight += float(share.sum())
        return total / weight + PLACES * self._off(examples, heard)


def batches(count: int, size: int, seed: int, steps: int) -> np.ndarray:
    """Deal out all examples, over and over, in an order that every arm shares: (steps, size)."""
    rng = np.random.default_rng([seed, 82])
    rounds = -(-steps * size // count)
    return np.concatenate([rng.permutation(count) for _ in range(rounds)])[: steps * size].reshape(steps, size)


def train(decoder: Decoder, subset: Subset, arm: Arm, seed: int, steps: int, folder: Path) -> list[dict[str, float]]:
    """Train in place, going on where the folder has a state; return a line of metrics for every 20 steps."""
    torch.manual_seed(seed)
    evidence = Quick(decoder.language_model)
    named = [*decoder.named_parameters(), *((f"evidence.{n}", p) for n, p in evidence.named_parameters())]
    optimiser = MasterOptimiser(named, lr=LR, muon_lr=MUON_LR, weight_decay=0.02, betas=(0.9, 0.95), clip=1.0)
    evidence.listener.on = True
    examples, lines, done, spent = subset.learned[arm.stamps], list[dict[str, float]](), 0, 0.0
    if (folder / checkpoint.FILE).is_file():
        tensors, state = checkpoint.load(folder)
        optimiser.restore(tensors)
        lines, done, spent = state["lines"], state["step"], state["cpu_s"]
    began, sums = time.process_time() - spent, list[tuple[float, ...]]()
    order = batches(len(examples), BATCH, seed, steps)
    for step in range(done, steps):
        picked = [examples[i] for i in order[step]]
        tokens = torch.cat([subset.tokens[subject] for subject, _ in picked], dim=1)
        chosen = [example for _, example in picked]
        loss, amiss, right = losses(decoder, chosen, tokens, evidence)
        (loss + amiss).backward()
        optimiser.step(schedule(step, steps, 30))
        sums.append((loss.item(), amiss.item(), right, float(sum(len(e.labels) for e in chosen))))
        if (step + 1) % 20 == 0:
            names, means = ("loss", "evidence", "right", "tokens"), np.mean(sums, axis=0).round(4).tolist()
            cpu_s = round(time.process_time() - began, 1)
            lines.append({"step": step + 1, "cpu_s": cpu_s, **dict(zip(names, means, strict=True))})
            sums.clear()
            checkpoint.save(folder, optimiser.tensors(), {"lines": lines, "step": step + 1, "cpu_s": cpu_s})
            print(folder.name, lines[-1], file=sys.stderr, flush=True)
    evidence.listener.on = False
    return lines


def losses(decoder: Decoder, examples: Sequence[Example], tokens: Tensor, evidence: Quick) -> tuple[Tensor, Tensor, float]:
    """Return the loss on answers, that on where is looked, and the share of whole answers predicted right."""
    labels = torch.from_numpy(np.concatenate([e.labels for e in examples]))
    rows = (labels != IGNORE).nonzero().flatten()
    hidden = decoder.language_model(Batch.pack([e.sequence for e in examples], decoder.see(tokens)))
    logits = decoder.logits(hidden[rows])
    each = F.cross_entropy(logits, labels[rows], reduction="none")
    share = torch.from_numpy(np.concatenate([answer_shares(e.turns) for e in examples]))[rows]
    amiss = evidence.amiss(examples)
    turns = torch.from_numpy(np.concatenate([np.where(e.turns >= 0, e.turns + 10 * i, -1) for i, e in enumerate(examples)]))[
        rows
    ]
    whole = torch.ones(10 * len(examples)).scatter_reduce(0, turns, (logits.argmax(-1) == labels[rows]).float(), "amin")
    return (each * share).sum() / share.sum(), amiss, whole[turns.unique()].mean().item()


@torch.inference_mode()
def answers(decoder: Decoder, subset: Subset, stamps: str, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Answer every prompt greedily; return a row for each."""
    end, rows = tokenizer.token_id("<|im_end|>"), list[dict[str, Any]]()
    asked = subset.asked[stamps]
    for first in range(0, len(asked), 32):
        some = asked[first : first + 32]
        prompts = [prompt for _, prompt, _ in some]
        caches = [KVCache(DEPTH, KV_HEADS, HEAD, dtype=torch.float32, device="cpu", capacity=len(p) + MOST) for p in prompts]
        seen = decoder.see(torch.cat([subset.tokens[subject] for subject, _, _ in some], dim=1))
        batch = Batch.pack(prompts, seen, output="last")
        said = [decoder.logits(decoder.language_model(batch, caches)[batch.output_rows]).argmax(-1)]
        for i in range(MOST - 1):
            places = [prompt.next_position + i for prompt in prompts]
            step = Batch.step(said[-1].tolist(), places)
            said.append(decoder.logits(decoder.language_model(step, caches)).argmax(-1))
        for (subject, _, question), ids in zip(some, torch.stack(said, 1).tolist(), strict=True):
            text = tokenizer.decode(ids[: ids.index(end)] if end in ids else ids)
            height = question.boxes[0][3] - question.boxes[0][1] if question.boxes else 0
            right = int(score(question.kind, text, question))
            rows.append({"subject": subject, "kind": question.kind, "right": right, "height": height, "answer": text,
                         "truth": question.answer})  # fmt: skip
    return rows


def run_arm(name: str, seed: int, args: argparse.Namespace) -> None:
    """Train and examine an arm, unless its result is there."""
    arm, folder = ARMS[name], folder_of(args.work, name, seed)
    file = folder / "result.json"
    if file.is_file():
        return
    wishes = wanted(args.train, args.test)
    tokenizer = stamped_tokenizer(args.work)
    subset = prepared(args.work, arm.world, wishes[arm.world])
    scale = torch.stack([rows.float().square().mean((1, 2)) for rows in subset.tokens]).mean(0).sqrt()
    decoder = Decoder(arm, tokenizer.vocab_size, subset.tokens[0].shape[-1], scale)
    decoder.init_weights(seed)
    lines = train(decoder, subset, arm, seed, args.steps, folder)
    del subset
    exams = {}
    for exam in EXAMS[arm.world]:
        examined = prepared(args.work, exam, wishes[exam])
        prompts = [len(prompt) for _, prompt, _ in examined.asked[arm.stamps]]
        exams[exam] = {"rows": answers(decoder, examined, arm.stamps, tokenizer), "prompt_tokens": float(np.mean(prompts))}
    weights = sum(p.numel() for p in decoder.parameters())
    write_text(file, json.dumps({"arm": name, "seed": seed, "weights": weights, "lines": lines, "exams": exams}))


Row = dict[str, Any]
GROUPS: dict[str, Callable[[Row], bool]] = {
    **{kind: (lambda row, kind=kind: row["kind"] == kind) for kind in (*CLIP_KINDS, *PICTURE_KINDS)},
    "small text": lambda row: row["kind"].startswith("read_") and row["height"] < SMALL_PX,
}
STUDIES = {
    "timestamps": ("released, clips", ("timestamp tokens",)),
    "deepstack": ("released, pictures", ("no taps", "taps spread")),
    "rope": ("released, clips", ("blocked M-RoPE",)),
}


def pairs_of(results: Sequence[Row], exam: str, group: str) -> np.ndarray:
    """Return (n, 2): for each question of a group the share of seeds that answered it right, and 1."""
    by_seed = [[row["right"] for row in result["exams"][exam]["rows"] if GROUPS[group](row)] for result in results]
    shares = np.mean(by_seed, axis=0) if by_seed[0] else np.empty(0)
    return np.stack([shares, np.ones(len(shares))], axis=1)


def report(work: Path, seeds: int) -> Row:
    """Gather what is finished: arms by group of questions, and differences within each study."""
    found = {
        name: [json.loads(f.read_text()) for s in range(seeds) if (f := folder_of(work, name, s) / "result.json").is_file()]
        for name in ARMS
    }
    out: Row = {"arms": {}, "differences": []}
    for name, results in found.items():
        exams: Row = {}
        for exam in EXAMS[ARMS[name].world] if results else ():
            exams[exam] = {"prompt_tokens": results[0]["exams"][exam]["prompt_tokens"]}
            for group in GROUPS:
                each = [ratio(pairs_of([result], exam, group)) for result in results]
                if not np.isnan(each[0]):
                    exams[exam][group] = {"by_seed": [round(x, 4) for x in each], "n": len(pairs_of(results, exam, group))}
        if results:
            lines = [result["lines"] for result in results]
            out["arms"][name] = {
                "weights": results[0]["weights"], "cpu_s": [one[-1]["cpu_s"] for one in lines], "exams": exams,
                "tokens_a_step": round(float(np.mean([line["tokens"] for line in lines[0]]))),
                "curve": [[[line["step"], line["right"]] for line in one] for one in lines],
            }  # fmt: skip
    for study, (first, others) in STUDIES.items():
        for second in others:
            both = min(len(found[first]), len(found[second]))  # only seeds that both have
            for exam in EXAMS[ARMS[first].world] if both else ():
                known = [group for group in GROUPS if len(pairs_of(found[first][:both], exam, group))]
                for groups in ([g for g in known if g != "small text"], *([g] for g in known)):
                    a, b = ([pairs_of(found[arm][:both], exam, group) for group in groups] for arm in (first, second))
                    each = [
                        round(float(np.mean([
                            ratio(pairs_of([found[second][s]], exam, g)) - ratio(pairs_of([found[first][s]], exam, g))
                            for g in groups
                        ])), 4)
                        for s in range(both)
                    ]  # fmt: skip
                    row = {"study": study, "first": first, "second": second, "exam": exam, "groups": groups, "by_seed": each}
                    out["differences"].append(row | difference(a, b).to_json())
    return out


def show(reading: Row) -> None:
    for name, arm in reading["arms"].items():
        for exam, groups in arm["exams"].items():
            said = ", ".join(f"{g} {np.mean(v['by_seed']):.1%}" for g, v in groups.items() if isinstance(v, dict))
            print(f"{name:20} {exam:14} {len(arm['curve'])} seeds: {said}")
    for row in reading["differences"]:
        kinds = "all" if len(row["groups"]) > 1 else row["groups"][0]
        said = f"{row['value']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}] by seed {row['by_seed']}"
        print(f"{row['second']:17} less released, {row['exam']:14} {kinds:12} {said}")


def folder_of(work: Path, name: str, seed: int) -> Path:
    return work / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/studies"), help="where everything is kept")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--train", type=int, default=1000, help="clips, and as many pictures, to learn from")
    parser.add_argument("--test", type=int, default=200, help="clips, and as many pictures, to be examined on")
    parser.add_argument("--arms", default=";".join(ARMS), help="which, in which order, with ; between them; '' only reports")
    parser.add_argument("--keep", action="store_true", help="write the reading")
    parser.add_argument("--tag", help="anything, to know the process by")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    for seed in range(args.seeds):
        for name in filter(None, args.arms.split(";")):
            run_arm(name, seed, args)
    reading = {
        "what": "decoders trained alike but for one thing", "date": datetime.date.today().isoformat(),
        "machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__, "steps": args.steps,
        "batch": BATCH, "train": args.train, "test": args.test, **report(args.work, args.seeds),
    }  # fmt: skip
    show(reading)
    if args.keep:
        write_text(RESULTS / f"{reading['date']}-studies.json", json.dumps(reading, indent=1) + "\n")
    print(json.dumps(reading))


if __name__ == "__main__":
    main()
