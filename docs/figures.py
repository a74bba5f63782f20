"""Draw the pictures of these pages with foveal's own functions: `python docs/figures.py [name ...]`.

Nothing here is a number copied from somewhere: sizes, positions, frequencies, taps, times and costs are what the package
computes for the shipped picture and clip, or for a released preset. The same code gives the same files, byte for byte.
"""

from __future__ import annotations

import ast
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import foveal
from foveal.config import PRESETS, MoeConfig, preset
from foveal.cost import DecoderFlops, VisionFlops, estimate
from foveal.generate import EMBEDDED, Pipeline
from foveal.media import Frames, load_clip, load_image
from foveal.patches import Budget, merge_block_coords, resize, smart_resize, target_size
from foveal.processor import Processor, Request
from foveal.prompt import ChatTemplate, timestamp_text, timestamp_token
from foveal.sequence import RULES, Segment, TextSegment, VisionSegment, build
from foveal.thinking import ThinkingStream

ROOT = Path(foveal.__file__).parent
OUT = Path(__file__).parent / "figures"
RESULTS = Path(__file__).parent.parent / "bench" / "results"
PICTURE, CLIP = (ROOT / "assets" / "demo" / name for name in ("picture.png", "clip.mp4"))
TEXT, IMAGE, VIDEO, INK, PALE = "#9aa5b1", "#2f7fc1", "#d9822b", "#1f2933", "#e4e7eb"
WORLD_SEEDS = {"emoji": 40, "event": 5, "far": 2, "pictures": 4, "receipt": 3}  # of the contact sheet; 1 elsewhere
AXES = ("#4c956c", "#2f7fc1", "#d9822b")  # time, height, width

plt.rcParams.update({"font.size": 9, "axes.titlesize": 10, "axes.edgecolor": INK, "axes.spines.top": False,
                     "axes.spines.right": False, "font.family": "DejaVu Sans", "svg.hashsalt": "foveal"})  # fmt: skip


def demo_request(question: str = "What is here?") -> tuple[Processor, list[Frames], Request]:
    """Lay out a question about the shipped picture and the shipped clip, as the embedded model's processor does."""
    processor = Processor.from_checkpoint(EMBEDDED)

    def fit(n: int, h: int, w: int) -> tuple[int, int]:
        return target_size(n, h, w, "video", processor.config.vision, processor.budget)

    frames = [load_image(PICTURE), load_clip(CLIP, fit=fit)]
    content = [*({"type": f.kind, f.kind: f} for f in frames), {"type": "text", "text": question}]
    return processor, frames, processor([{"role": "user", "content": content}])


def bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def needed(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk what runs: everything but what a type checker alone reads."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and getattr(child.test, "id", "") == "TYPE_CHECKING"):
            yield from needed(child)


def reached(part: str, imports: dict[str, set[str]]) -> set[str]:
    """Collect a part and all it needs, however far."""
    seen, ahead = set(), [part]
    while ahead:
        seen.add(at := ahead.pop())
        ahead += imports[at] - seen
    return seen


def architecture() -> Figure:
    """Show which part of the package imports which, read from the source; below the diagonal is below in the layers."""
    imports: dict[str, set[str]] = {}
    for file in sorted(ROOT.rglob("*.py")):
        part = file.relative_to(ROOT).parts[0].removesuffix(".py")
        if part.startswith("__") or part == "demo":
            continue
        found = imports.setdefault(part, set())
        for node in needed(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("foveal"):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                found.update(name.split(".")[1] for name in names)
    imports = {part: (found & imports.keys()) - {part} for part, found in imports.items()}
    rank: dict[str, int] = {}
    while len(rank) < len(imports):
        # Lowest first; parts that need each other count as one and come together.
        left = imports.keys() - rank.keys()
        needs = {part: reached(part, imports) & left for part in left}
        lowest = min(sorted(left), key=lambda part: len(needs[part]))
        rank |= dict.fromkeys(needs[lowest], max(rank.values(), default=-1) + 1)
    order = sorted(imports, key=lambda part: (rank[part], part))
    at = {part: i for i, part in enumerate(order)}
    figure, axes = plt.subplots(figsize=(7.0, 6.6))
    for i, part in enumerate(order):
        if rank[part] % 2 == 0:
            axes.axhspan(i - 0.5, i + 0.5, color="#f1f4f8", zorder=0)
        axes.add_patch(Rectangle((i - 0.5, i - 0.5), 1, 1, color=PALE))
        for other in imports[part]:
            axes.plot(at[other], i, "o", color=IMAGE, markersize=7)
    size = len(order)
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), aspect="equal")
    axes.set_xticks(range(size), order, rotation=90)
    axes.set_yticks(range(size), order)
    axes.set_title("a dot: the part in this row imports the part in this column\n"
                   "(lowest first; a dot above the diagonal: two parts that need each other)")  # fmt: skip
    return figure


def shapes() -> Figure:
    """Write the legend's letters beside the sizes they have in one real request to the embedded model."""
    import torch

    from foveal.batch import Batch, PatchBatch

    _, _, request = demo_request()
    pipeline = Pipeline.load()
    config, model = pipeline.processor.config, pipeline.model
    with torch.inference_mode():
        packed = PatchBatch.pack(request.patches, config.vision)
        vision = model.encode(packed)
        batch = Batch.pack([request.sequence], [vision], output="last")
        cache = model.new_cache(len(request.sequence))
        logits = model(batch, [cache])
    text = config.text
    rows = [
        ("stills", "(P, X)", packed.stills), ("pairs", "(P, X)", packed.pairs),
        ("patch embedding", "(P, C)", (sum(packed.lengths), config.vision.hidden_size)),
        ("VisionTokens.embeddings", "(V, D)", vision.embeddings), ("VisionTokens.taps", "(I, V, D)", vision.taps),
        ("Batch.token_ids", "(T,)", batch.token_ids), ("Batch.position_ids", "(3, T)", batch.position_ids),
        ("queries", "(T, N, H)", (len(request.sequence), text.num_attention_heads, text.head_dim)),
        ("cached keys, a layer", "(G, S, H)", (text.num_key_value_heads, cache.length, text.head_dim)),
        ("logits of the last row", "(B, R)", logits),
    ]  # fmt: skip
    figure, axes = plt.subplots(figsize=(7.6, 4.2))
    for i, (name, letters, value) in enumerate(rows):
        shape = tuple(value) if isinstance(value, tuple) else tuple(value.shape)
        kind = "" if isinstance(value, tuple) else str(value.dtype).removeprefix("torch.")
        size = int(np.prod(shape))
        colour = TEXT if "token_ids" in name or "position" in name else (IMAGE if i < 5 else VIDEO)
        axes.barh(i, size, color=colour, height=0.6)
        axes.text(size * 1.25, i, f"{letters} = {shape} {kind}", va="center")
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.set(xscale="log", xlim=(80, 6e7), ylim=(len(rows) - 0.4, -0.6), xlabel="numbers in it (logarithmic)")
    axes.set_title("one request to the embedded model: a picture, a clip of eight frames and a question")
    return figure


def positions() -> Figure:
    """Plot the positions of one prompt on all three axes, under the current and the two older rules, and who turns what."""
    grids = [[(8, 12)], [(4, 8)] * 3]
    words = TextSegment((1,) * 6)
    clip = [VisionSegment(1, frame) for frame in range(3)]
    segments: list[Segment] = [words, VisionSegment(0, 0), words, *clip, words]
    figure = plt.figure(figsize=(8.6, 5.8))
    layout = figure.add_gridspec(3, 3, height_ratios=(5, 0.8, 0.8), hspace=0.85, wspace=0.28)
    titles = {"interleaved": "interleaved\n(Qwen3-VL)", "frame-index": "frame index\n(Qwen2-VL)",
              "seconds": "seconds, 2 steps each\n(Qwen2.5-VL)"}  # fmt: skip
    for column, rule in enumerate(RULES):
        sequence = build(
            segments, grids, image_token_id=7, video_token_id=8, kinds=["image", "video"], merge=2, rule=rule,
            seconds_per_grid=[1.0, 1.0], tokens_per_second=2.0,
        )  # fmt: skip
        axes = figure.add_subplot(layout[0, column])
        for axis, name in ((1, "row"), (2, "column"), (0, "time")):
            axes.plot(sequence.position_ids[axis], color=AXES[axis], lw=1.3 + (axis == 0), label=name)
        for kind, colour in ((7, IMAGE), (8, VIDEO)):
            inside = sequence.token_ids == kind
            axes.fill_between(range(len(sequence)), 0, 42, where=inside, color=colour, alpha=0.13, step="mid")
        axes.set(ylim=(0, 42), xlabel="token", title=titles[rule])
        axes.text(len(sequence) - 1, sequence.next_position + 1.5, f"next {sequence.next_position}", ha="right")
        if not column:
            axes.set_ylabel("position")
            axes.legend(loc="upper left", frameon=False, borderpad=0, labelspacing=0.2)
    from foveal.model.rope import axis_of_frequency

    rope = preset("8B").text.rope
    for row, interleaved in ((1, True), (2, False)):
        axes = figure.add_subplot(layout[row, :])
        owner = axis_of_frequency(rope.mrope_section, interleaved).numpy()
        axes.imshow(owner[None], aspect="auto", cmap=ListedColormap(AXES), vmin=0, vmax=2)
        axes.set_xticks(np.arange(0, len(owner), 3) - 0.5, [str(i) for i in range(0, len(owner), 3)])
        axes.set_yticks([])
        axes.set_title(("interleaved, as released" if interleaved else "blocked, as in Qwen2-VL")
                       + f": who turns frequency 0 (fastest) .. {len(owner) - 1} (slowest)", loc="left")  # fmt: skip
    return figure


def deepstack() -> Figure:
    """Draw which ViT block feeds which decoder layer, for a released size and for the overview preset."""
    figure, both = plt.subplots(1, 3, figsize=(7.8, 5.0))
    for axes, name in zip(both, ("2B", "8B", "overview"), strict=True):
        config = preset(name)
        blocks, layers = config.vision.depth, config.text.num_hidden_layers
        for x, count, side in ((0, blocks, "right"), (2, layers, "left")):
            for i in range(count):
                taken = i in (config.vision.taps if x == 0 else config.vision.tap_layers)
                axes.add_patch(Rectangle((x, i), 0.7, 0.8, color=VIDEO if taken else PALE))
                if taken:
                    axes.text(x - 0.1 if side == "right" else x + 0.8, i + 0.4, str(i), ha=side, va="center", fontsize=8)
        for block, layer in zip(config.vision.taps, config.vision.tap_layers, strict=True):
            axes.annotate("", (1.97, layer + 0.4), (0.73, block + 0.4), arrowprops={"arrowstyle": "->", "color": VIDEO})
        axes.annotate("", (1.97, -1.2), (0.73, blocks - 0.1), arrowprops={"arrowstyle": "->", "color": IMAGE, "lw": 1.6})
        axes.add_patch(Rectangle((2, -1.6), 0.7, 0.8, color=IMAGE))
        axes.set(xlim=(-0.5, 3.2), ylim=(-2.5, 37))
        axes.set_title(f"{name}: blocks {', '.join(map(str, config.vision.taps))}\n"
                       f"after layers {', '.join(map(str, config.vision.tap_layers))}")  # fmt: skip
        bare(axes)
        axes.text(0.35, -2.3, f"{blocks} ViT blocks", ha="center", va="top", fontsize=8)
        axes.text(2.35, -2.3, f"{layers} layers", ha="center", va="top", fontsize=8)
    figure.text(0.5, 0.01, "orange: a tap through its own merger, added to the vision rows;  blue: the main merger, in place "
                "of the placeholder's embedding", ha="center", fontsize=8)  # fmt: skip
    return figure


def timestamps() -> Figure:
    """Lay the shipped clip's frames, pairs, times and tokens along one line."""
    processor, frames, request = demo_request()
    clip, patches = frames[1], request.patches[1]
    figure = plt.figure(figsize=(7.8, 4.3))
    layout = figure.add_gridspec(3, len(clip.pixels), height_ratios=(1.5, 1.1, 1.2), hspace=0.25, wspace=0.08)
    for i, (pixels, seconds) in enumerate(zip(clip.pixels, clip.times_s, strict=True)):
        axes = figure.add_subplot(layout[0, i])
        axes.imshow(pixels)
        bare(axes)
        axes.set_title(f"{seconds:g} s", fontsize=9)
    per = len(clip.pixels) // len(patches.times_s)
    for t, seconds in enumerate(patches.times_s):
        axes = figure.add_subplot(layout[1, t * per : (t + 1) * per])
        bare(axes)
        axes.add_patch(Rectangle((0.02, 0), 0.96, 1, color=VIDEO, alpha=0.18))
        axes.text(0.5, 0.5, f"mean {seconds:g} s\n{timestamp_text(seconds)}\nor {timestamp_token(seconds)}", ha="center",
                  va="center", fontsize=8)  # fmt: skip
    axes = figure.add_subplot(layout[2, :])
    sequence = request.sequence
    kinds = np.select([sequence.token_ids == processor.config.image_token_id,
                       sequence.token_ids == processor.config.video_token_id], [1, 2], 0)  # fmt: skip
    axes.imshow(kinds[None], aspect="auto", cmap=ListedColormap([TEXT, IMAGE, VIDEO]), vmin=0, vmax=2)
    axes.set_yticks([])
    axes.set_title(f"the prompt's {len(sequence)} tokens: blue picture, orange frame pairs, grey text",
            loc="left", fontsize=9)  # fmt: skip
    axes.set_xlabel("token")
    return figure


def vision() -> Figure:
    """Show the order of patches, the sampled position table, and who attends to whom in the encoder."""
    processor, frames, request = demo_request()
    config, patches = processor.config.vision, request.patches[0]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(8.2, 3.2))
    rows, columns = patches.grids[0]
    side = config.patch_size
    size = target_size(1, *frames[0].source_size, "image", config, processor.budget)
    left.imshow(resize(frames[0].pixels, size)[0])
    for k in range(columns + 1):
        left.axvline(k * side - 0.5, color="w", lw=1.6 if k % config.spatial_merge_size == 0 else 0.4)
    for k in range(rows + 1):
        left.axhline(k * side - 0.5, color="w", lw=1.6 if k % config.spatial_merge_size == 0 else 0.4)
    shown = merge_block_coords(1, rows, columns, config.spatial_merge_size)[: 4 * config.spatial_merge_size**2]
    centres = (shown[:, 1:] + 0.5) * side
    left.plot(centres[:, 1], centres[:, 0], "-", color=VIDEO, lw=1)
    for k, (y, x) in enumerate(centres):
        box = {"boxstyle": "round,pad=0.15", "fc": VIDEO}
        left.text(x, y, str(k), color="w", ha="center", va="center", fontsize=7, bbox=box)
    bare(left)
    left.set_title(f"{frames[0].source_size[0]}×{frames[0].source_size[1]} px to {size[0]}×{size[1]} px\n"
                   f"{rows}×{columns} patches, {patches.num_tokens} vision tokens")  # fmt: skip
    from foveal.batch import _table_neighbours

    table = config.position_side
    index, weight = _table_neighbours(patches, table)
    at_y, at_x = ((index // table) * weight).sum(1), ((index % table) * weight).sum(1)
    grid = np.arange(table)
    middle.plot(*(a.ravel() for a in np.meshgrid(grid, grid)), ".", color=TEXT, markersize=2.5)
    middle.plot(at_x, at_y, "o", color=IMAGE, markersize=4)
    middle.set_xticks(range(0, table, 4))
    middle.set_yticks(range(0, table, 4))
    middle.set(aspect="equal", ylim=(table, -1))
    middle.set_title(f"learned table {table}×{table} (grey),\nread between its entries (blue)")
    lengths = [n for p in request.patches for n in p.lengths()]
    frame = np.repeat(np.arange(len(lengths)), lengths)
    colour = np.where(frame[:, None] == frame, np.where(frame[:, None] == 0, 1, 2), 0)
    right.imshow(colour, cmap=ListedColormap(["white", IMAGE, VIDEO]), vmin=0, vmax=2)
    right.set_title(f"who attends to whom: a picture and\n{len(lengths) - 1} frame pairs, each to itself")
    right.set(xlabel="patch", ylabel="patch")
    figure.tight_layout()
    return figure


def language() -> Figure:
    """Show where weights sit in every released size, and what the router and the grouped path do to a few tokens."""
    import torch

    from foveal.model.moe import Router

    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.9), width_ratios=(1.25, 1))
    names = [name for name in PRESETS if name != "overview"]
    for i, name in enumerate(names):
        config = preset(name)
        text, layers = config.text, range(config.text.num_hidden_layers)
        mlp = sum(text.mlp_parameters(k) for k in layers)
        active = sum(text.mlp_parameters(k, active=True) for k in layers)
        head = config.num_parameters - config.vision.num_parameters - text.num_parameters
        embeddings = text.vocab_size * text.hidden_size + head
        rest = text.num_parameters - mlp - text.vocab_size * text.hidden_size
        start = 0.0
        parts = [config.vision.num_parameters, embeddings, rest, active, mlp - active]
        for part, colour in zip(parts, (IMAGE, TEXT, AXES[0], VIDEO, "#f5d5b5"), strict=True):
            left.barh(i, part / config.num_parameters, left=start, color=colour, height=0.62)
            start += part / config.num_parameters
        left.text(1.01, i, f"{config.num_parameters / 1e9:.2f} B", va="center", fontsize=8)
    left.set_yticks(range(len(names)), names)
    left.set(xlim=(0, 1.16), ylim=(len(names) - 0.5, -0.5), xlabel="share of all weights")
    left.set_title("blue vision, grey embeddings and head,\ngreen attention, orange MLP (pale: experts not visited)")
    moe = MoeConfig(num_experts=12, num_experts_per_tok=3, moe_intermediate_size=16)
    torch.manual_seed(0)
    router = Router(moe, 32)
    torch.nn.init.normal_(router.weight, std=0.3)
    with torch.no_grad():
        weights, index = router(torch.randn(16, 32))
    dense = torch.zeros(16, moe.num_experts).scatter(1, index, weights)
    right.imshow(dense.numpy(), cmap="Oranges", aspect="auto", vmin=0)
    counts = np.bincount(index.flatten().numpy(), minlength=moe.num_experts)
    right.set_xticks(range(moe.num_experts), [f"{e}\n{n}" for e, n in enumerate(counts)])
    right.set(xlabel="expert, and below it how many rows it gets", ylabel="token")
    right.set_title(f"a router with random weights: {moe.num_experts_per_tok} of {moe.num_experts}\n"
                    "experts a token, each row sums to 1")  # fmt: skip
    figure.tight_layout()
    return figure


def thinking() -> Figure:
    """Feed replies letter by letter to the stream and colour each letter by the channel it came out of."""
    processor = Processor.from_checkpoint(EMBEDDED)
    ask = [{"role": "user", "content": "?"}]
    thinks = ChatTemplate.builtin("thinking", processor.tokenizer)
    cases = [
        ("Thinking: the prompt opens the thought", thinks.render(ask).opens_thinking, "2 <3, so\n</think>\n\nTwo."),
        ("Thinking, cut short: no closing tag", thinks.render(ask).opens_thinking, "two cups, then"),
        ("Thinking with think=False", thinks.render(ask, think=False).opens_thinking, "Two."),
        ("Instruct", ChatTemplate.builtin("instruct", processor.tokenizer).render(ask).opens_thinking, "Two."),
        ("a reply that brings both tags", False, "<think>\ncups\n</think>\n\nTwo."),
    ]
    figure, axes = plt.subplots(figsize=(7.8, 5.2))
    colours = {"reasoning": AXES[0], "answer": IMAGE}
    for row, (title, opened, reply) in enumerate(cases):
        stream = ThinkingStream(opened)
        axes.text(0, row - 0.24, f"{title}   (opened={opened})", fontsize=9, color=INK)
        for step, letter in enumerate([*reply, None]):
            out = stream.flush() if letter is None else stream.push(letter)
            shown = "end" if letter is None else letter.replace("\n", "↵")
            axes.text(step + 0.5, row, shown, ha="center", va="center", fontsize=9 if letter else 7, family="DejaVu Sans Mono")
            colour = colours[out[-1][0]] if out else "white"
            axes.add_patch(Rectangle((step, row + 0.14), 0.95, 0.28, color=colour, ec=TEXT, lw=0.5))
            count = sum(len(text) for _, text in out)
            if count > 1:
                axes.text(step + 0.5, row + 0.28, str(count), ha="center", va="center", fontsize=7, color="w")
    axes.set(xlim=(0, 34), ylim=(len(cases) - 0.3, -0.6))
    axes.set_title("letters in (above) and what comes out at that moment: green reasoning, blue answer,\n"
                   "white nothing yet; a number: so many letters that were held back", loc="left")  # fmt: skip
    bare(axes)
    return figure


def data_flow() -> Figure:
    """Follow the bytes of the shipped request, and the FLOPs of a large picture through a released size."""
    processor, frames, request = demo_request()
    config = processor.config
    tokens = sum(p.num_tokens for p in request.patches)
    vision = config.vision
    full = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2 * 4
    values = [
        ("files", PICTURE.stat().st_size + CLIP.stat().st_size, TEXT),
        ("Frames (uint8)", sum(f.pixels.nbytes for f in frames), IMAGE),
        ("Patches (uint8)", sum(p.pixels.nbytes for p in request.patches), IMAGE),
        ("the reference's pixel_values (float32)", sum(len(p.pixels) for p in request.patches) * full, PALE),
        ("VisionTokens: embeddings and taps", tokens * (1 + len(vision.taps)) * vision.out_hidden_size * 4, VIDEO),
        ("Sequence: ids, positions, rows", sum(getattr(request.sequence, n).nbytes for n in
                                               ("token_ids", "position_ids", "vision_rows")), AXES[0]),
        ("key-value cache after the prefill", config.text.kv_bytes_per_token("float32") * len(request.sequence), VIDEO),
    ]  # fmt: skip
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7.8, 5.0), height_ratios=(1.6, 1))
    for i, (_, size, colour) in enumerate(values):
        top.barh(i, size / 1024, color=colour, height=0.62)
        top.text(size / 1024 + 15, i, f"{size / 1024:,.0f} KiB", va="center", fontsize=8)
    top.set_yticks(range(len(values)), [name for name, _, _ in values])
    top.set(ylim=(len(values) - 0.5, -0.5), xlim=(0, 1.18 * max(v[1] for v in values) / 1024))
    top.set_title("bytes: a picture, a clip and a question, embedded model in float32", loc="left")
    large = preset("8B")
    low, high = Budget().image
    h, w = smart_resize(1080, 1920, factor=large.vision.factor, min_tokens=low, max_tokens=high)
    patches = h * w // large.vision.patch_size**2
    seen = patches // large.vision.spatial_merge_size**2
    cost = estimate(large, [("image", [patches])], seen + 20)
    decoder = ("layers", "attention", "head")
    stages: list[tuple[str, VisionFlops | DecoderFlops, tuple[str, ...]]] = [
        ("encode", cost.encode, ("patch_embedding", "blocks", "attention", "mergers")),
        ("prefill", cost.prefill, decoder),
        ("decode, one token", cost.decode, decoder),
    ]
    shade = {"patch_embedding": TEXT, "blocks": IMAGE, "layers": IMAGE, "attention": VIDEO, "mergers": AXES[0], "head": AXES[0]}
    for i, (_, flops, parts) in enumerate(stages):
        start = 0.0
        for part in parts:
            bottom.barh(i, getattr(flops, part) / 1e12, left=start, color=shade[part], height=0.62)
            start += getattr(flops, part) / 1e12
        bottom.text(start + 0.4, i, f"{flops.total / 1e12:.3g} TFLOP", va="center", fontsize=8)
    bottom.set_yticks(range(len(stages)), [name for name, _, _ in stages])
    bottom.set(ylim=(len(stages) - 0.5, -0.5), xlim=(0, 1.2 * max(s[1].total for s in stages) / 1e12))
    bottom.set_title(f"work: one 1080p picture ({seen} vision tokens) and 20 text tokens through 8B\n"
                     "blue linears, orange attention, green mergers or head", loc="left")  # fmt: skip
    figure.tight_layout()
    return figure


def embedded_model() -> Figure:
    """Plot how the encoder learned to see, alone and with a teacher, and how the answers came out of it."""
    trials = json.loads((RESULTS / "2026-11-24-seeing-trials.json").read_text())["trials"]
    shown = {
        "a convolutional network of": ("a small convolutional network", AXES[0]),
        "the same, with a convolutional teacher": ("the encoder, taught by one", IMAGE),
        "Muon 1e-2, 3 to 6 shapes, looking nearby": ("the encoder, from labels alone", TEXT),
    }
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.9), width_ratios=(1, 1.35))
    for name, rows in trials.items():
        for start, (label, colour) in shown.items():
            if name.startswith(start):
                items, kinds = zip(*((row["items"], row["kind"]) for row in rows.values()), strict=True)
                left.plot(items, kinds, "o-", ms=3, color=colour, label=label)
    left.set_xticks(range(0, 18000, 4000))
    left.set(xlabel="pictures seen", ylim=(0, 1), title="patches of a shape named right")
    left.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    log = [json.loads(line) for line in (RESULTS / "2026-11-24-embedded-training-fourth.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in log]
    right.plot(steps, [line["cell_kind"] for line in log], color=TEXT, label="patch: kind")
    right.plot(steps, [line["cell_char"] for line in log], color=TEXT, ls=":", label="patch: character")
    # Boxes are left out: hardly any is right to its last digit, which is what this counts.
    kinds = ("colour", "shape", "count", "relation", "read_number", "appear_time", "first")
    for i, kind in enumerate(kinds):
        points = [(line["step"], line["accuracy"][kind]) for line in log if "accuracy" in line]
        right.plot(*zip(*points, strict=True), color=plt.get_cmap("tab10")(i), label=kind)
    right.set(xlabel="step", ylim=(0, 1), title="the run: patches, then whole answers")
    right.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    return figure


def embedded_second() -> Figure:
    """Plot what was reached of every bar before and after the second edition was learned, and how it was learned."""
    before, after = (
        json.loads((RESULTS / f"2026-11-29-embedded-{name}.json").read_text())["kinds"]
        for name in ("before-second", "second-edition")
    )
    kinds = [kind for kind in after if "bar" in after[kind] and kind in before]
    kinds.sort(key=lambda kind: after[kind]["value"])
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.8, 4.4), width_ratios=(1, 1.25))
    for y, kind in enumerate(kinds):
        left.plot([before[kind]["value"], after[kind]["value"]], [y, y], color="0.8", lw=2, zorder=1)
        left.plot(after[kind]["bar"], y, "|", color="black", ms=14, mew=1.5, label="bar" if not y else None)
        left.plot(before[kind]["value"], y, "o", color=TEXT, ms=5, label="before" if not y else None)
        left.plot(after[kind]["value"], y, "o", color=IMAGE, ms=6, label="after" if not y else None)
    left.set_yticks(range(len(kinds)), kinds, fontsize=8)
    left.set(xlim=(-0.03, 1.03), title="right, of fresh items")
    left.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=3)
    log = [json.loads(line) for line in (RESULTS / "2026-11-29-embedded-training-sixth.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in log]
    for name, style, label in (("cell_kind", "-", "patch: kind, emoji too"), ("cell_char", ":", "patch: character")):
        # Not measured while the encoder stood still.
        right.plot(steps, [line.get(name, np.nan) for line in log], color=TEXT, ls=style, label=label)
    shown = ("colour", "relation", "count", "read_word", "absent_one", "event_appear_time", "order_list", "reasoned_count",
             "emoji_name")  # fmt: skip
    for i, kind in enumerate(shown):
        right.plot(steps, [line["accuracy"][kind] for line in log], color=plt.get_cmap("tab10")(i), label=kind)
    right.set(xlabel="step", ylim=(0, 1), title="the run: patches, then whole answers")
    right.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    return figure


def quantization() -> Figure:
    """Colour a packed block by address, found by packing one weight at a time; plot measured errors beside it."""
    from foveal import kernels

    places = np.zeros((16, 32), int)
    for row, column in np.ndindex(*places.shape):
        weight = np.zeros((16, 32), np.float32)
        empty = kernels.pack(weight, 8).codes
        weight[row, column] = 1
        (places[row, column],) = np.flatnonzero(kernels.pack(weight, 8).codes.ravel() != empty.ravel())
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.4, 3.6), width_ratios=(1.25, 1))
    shown = left.imshow(places, cmap="viridis")
    for row, column in ((0, 0), (0, 4), (1, 0), (15, 31)):
        ink = "white" if places[row, column] < places.max() / 2 else "black"
        left.text(column, row, str(places[row, column]), ha="center", va="center", fontsize=6, color=ink)
    left.set(xlabel="32 columns: a group of each row", ylabel="16 rows", title="a block of 8-bit weights, by byte")
    figure.colorbar(shown, ax=left, shrink=0.7)
    file = max(RESULTS.glob("*-quantized.json"))
    record = json.loads(file.read_text())
    styles = (("8 bits", IMAGE), ("4 bits", VIDEO), ("7-bit by token", TEXT))
    for what, line in (("linear", "-"), ("decoder", ":")):
        for name, colour in styles:
            times = [row["times"] for row in record[what]]
            label = f"{name}, {'a linear' if what == 'linear' else 'logits'}"
            right.plot(times, [row[name] for row in record[what]], line, marker="o", ms=3, color=colour, label=label)
    right.set(xscale="log", yscale="log", xlabel="times that 8 channels are larger", title="relative error")
    right.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    return figure


def finetuning() -> Figure:
    """Pack conversations about world pictures as a fine-tuning run does, and colour what is given, seen and learned."""
    import tempfile

    from PIL import Image

    from foveal.finetune.labels import IGNORE
    from foveal.finetune.order import Cursor, Stream
    from foveal.finetune.samples import SampleReader
    from foveal.finetune.sources import open_source
    from foveal.world import Difficulty, picture_item

    with tempfile.TemporaryDirectory() as folder:
        records = []
        for seed in range(16):
            item = picture_item(seed, Difficulty())
            Image.fromarray(item.pixels[0]).save(Path(folder) / f"{seed}.png")
            turns = [{"role": who, "content": text} for q in item.questions[: 1 + seed % 5]
                     for who, text in (("user", q.question), ("assistant", q.answer))]  # fmt: skip
            turns[0]["content"] = f"<image>{turns[0]['content']}"
            records.append({"image": f"{seed}.png", "messages": turns})
        (Path(folder) / "data.json").write_text(json.dumps(records))
        reader = SampleReader(Processor.from_checkpoint(EMBEDDED))
        source = open_source(f"{folder}/data.json")
        stream = Stream([source], reader, seed=0, window=16, batch_tokens=512, epochs=1)
        packed = list(stream.start(Cursor()))
    figure, axes = plt.subplots(figsize=(9.4, 0.5 + 0.42 * len(packed)))
    colours = {"given": TEXT, "vision": IMAGE, "learned": VIDEO}
    for row, batch in enumerate(packed):
        at = 0
        for sample in batch.samples:
            learned = np.concatenate([[False], sample.labels[:-1] != IGNORE])
            kinds = np.where(sample.request.sequence.vision_rows >= 0, "vision", np.where(learned, "learned", "given"))
            edges = [0, *(np.flatnonzero(kinds[1:] != kinds[:-1]) + 1), len(kinds)]
            for first, last in itertools.pairwise(edges):
                axes.barh(row, last - first, left=at + first, color=colours[kinds[first]], height=0.7)
            at += len(sample)
            axes.plot([at, at], [row - 0.45, row + 0.45], color=INK, lw=1.2)
    for kind, colour in colours.items():
        axes.barh(0, 0, color=colour, label=kind)
    axes.axvline(512, color=INK, lw=1, ls=":")
    axes.set(xlabel="tokens", ylabel="batch", ylim=(len(packed) - 0.5, -0.5), yticks=range(len(packed)))
    axes.set_title("16 conversations in batches of at most 512 tokens; a line ends each, and attention ends there")
    axes.legend(frameon=False, ncols=3, loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    return figure


def world() -> Figure:
    """Show one case of every kind of the generated world, with its evidence boxed, one question and its answer."""
    import textwrap

    from foveal.world import CASE_KINDS, make

    figure, grid = plt.subplots(4, 4, figsize=(12.4, 13.2))
    for axes, kind in zip(grid.flat, CASE_KINDS, strict=True):
        case = make(kind, WORLD_SEEDS.get(kind, 1))
        question = case.questions[-1] if kind in ("turns", "pictures") else case.questions[0]
        clip = case.items[0].kind == "video"
        if clip:
            pixels = case.items[0].pixels
            spread = np.linspace(0, len(pixels) - 1, 4).astype(int)[: max(0, 4 - len(question.frames))]
            numbers = sorted({*question.frames[:4], *spread.tolist()})
            shown = [(pixels[n], [b for b, f in zip(question.boxes, question.frames, strict=True) if f == n]) for n in numbers]
        else:
            places = question.pictures or (0,) * len(question.boxes)
            shown = [(item.pixels[0], [b for b, place in zip(question.boxes, places, strict=True) if place == n])
                     for n, item in enumerate(case.items)]  # fmt: skip
        columns = 2 if len(shown) > 2 else len(shown)
        height, width = (max(pixels.shape[side] for pixels, _ in shown) + 6 for side in (0, 1))
        rows = -(-len(shown) // columns)
        sheet = np.full((rows * height - 6, columns * width - 6, 3), 255, np.uint8)
        for n, (pixels, boxes) in enumerate(shown):
            y, x = n // columns * height, n % columns * width
            sheet[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
            for x1, y1, x2, y2 in boxes:
                axes.add_patch(
                    Rectangle((x + x1 - 4, y + y1 - 4), x2 - x1 + 7, y2 - y1 + 7, fill=False, edgecolor="#e0218a", lw=1.2)
                )
            if clip:
                axes.text(x + 3, y + pixels.shape[0] - 4, f"{case.items[0].times_s[numbers[n]]:.1f} s", fontsize=6.5, color=INK,
                          bbox={"facecolor": "white", "alpha": 0.75, "pad": 0.8, "lw": 0})  # fmt: skip
        axes.imshow(sheet, interpolation="nearest" if max(sheet.shape) < 300 else "antialiased")
        bare(axes)
        axes.set_anchor("NW")
        earlier = f"{case.questions[0].question} → {case.questions[0].answer} " if kind == "turns" else ""
        answer = question.answer.removeprefix("```json\n").removesuffix("\n```")
        lines = [*textwrap.wrap(earlier + question.question, 46), *textwrap.wrap(f"→ {answer}", 46)]
        axes.set_title(kind, loc="left", fontweight="bold")
        axes.set_xlabel("\n".join(lines), fontsize=7.5, loc="left")
    figure.subplots_adjust(hspace=0.42, wspace=0.12, left=0.01, right=0.99, top=0.97, bottom=0.06)
    return figure


def evaluation() -> Figure:
    """Examine two imagined arms, right 90 and 87 times of 100, many times over: how wide intervals are, how often they hold."""
    from foveal.evaluate.bootstrap import difference

    rng = np.random.default_rng(0)
    times, truth = 200, -0.03
    sizes, alike = (10, 20, 50, 100, 200, 500, 1000), (0.0, 0.5, 0.9)
    widths, held = np.zeros((len(alike), len(sizes))), np.zeros((len(alike), len(sizes)))
    for i, share in enumerate(alike):
        for j, size in enumerate(sizes):
            for _ in range(times):
                luck = rng.random((2, size))
                same = rng.random(size) < share  # items that are as hard for one arm as for the other
                pair = (luck[0] < 0.9, np.where(same, luck[0], luck[1]) < 0.87)
                first, second = (np.stack([right, np.ones(size)], axis=1).astype(float) for right in pair)
                found = difference([first], [second], resamples=500)
                widths[i, j] += (found.high - found.low) / times
                held[i, j] += (found.low <= truth <= found.high) / times
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, 3.4), layout="constrained")
    for i, (share, colour) in enumerate(zip(alike, AXES, strict=True)):
        left.plot(sizes, 100 * widths[i], "o-", color=colour, ms=3, label=f"{share:.0%} of the items alike hard for both")
        right.plot(sizes, 100 * held[i], "o-", color=colour, ms=3)
    left.axhline(200 * abs(truth), color=INK, lw=1, ls=":")
    left.text(sizes[0], 200 * abs(truth) * 1.08, "narrow enough for 3 points", color=INK, fontsize=8)
    left.set(xscale="log", yscale="log", xlabel="items", ylabel="points", title="width of the interval of a difference")
    left.set_yticks([2, 5, 10, 20, 50], ["2", "5", "10", "20", "50"])
    left.legend(frameon=False, fontsize=8)
    right.axhline(95, color=INK, lw=1, ls=":")
    right.set(
        xscale="log", xlabel="items", ylabel="% of examinations", ylim=(0, 101), title="the interval holds the true difference"
    )
    for axes in (left, right):
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
    return figure


def studies() -> Figure:
    """Draw the studies of bench/studies.py: how arms learned, and how far each is from the released one, with intervals."""
    reading = json.loads(max(RESULTS.glob("*-studies.json")).read_text())
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.4), layout="constrained", width_ratios=(1, 1, 1.4))
    colours = {
        "released": INK,
        "timestamp tokens": AXES[0],
        "blocked M-RoPE": AXES[2],
        "no taps": AXES[2],
        "taps spread": AXES[1],
    }
    for panel, world in zip(axes, ("clips", "pictures"), strict=False):
        for name, arm in reading["arms"].items():
            if any(exam.startswith(world) for exam in arm["exams"]):
                short = name.split(",")[0]
                for i, curve in enumerate(arm["curve"]):
                    steps, right = zip(*curve, strict=True)
                    panel.plot(steps, np.array(right) * 100, color=colours[short], lw=1, label=short if i == 0 else None)
        panel.set(xlabel="step", ylabel="% of answers, every token right", title=f"learning about {world}", ylim=(0, 101))
        panel.legend(frameon=False, fontsize=7)
    rows = [row for row in reading["differences"] if len(row["groups"]) > 1 or row["groups"] == ["small text"]]
    for y, row in enumerate(rows[::-1]):
        axes[2].plot([100 * row["low"], 100 * row["high"]], [y, y], color=colours[row["second"]], lw=2)
        axes[2].plot([100 * each for each in row["by_seed"]], [y] * len(row["by_seed"]), "o", ms=3, color=INK)
    axes[2].axvline(0, color=INK, lw=0.8, ls=":")
    names = [f"{row['second']}: {row['exam']}" + (", small text" if row["groups"] == ["small text"] else "") for row in rows]
    axes[2].set_yticks(range(len(rows)), names[::-1], fontsize=7)
    axes[2].set(xlabel="points less released; dots are seeds", title="difference, 95 % over questions")
    return figure


def engine() -> Figure:
    """Run requests that arrive one after another through the engine, and draw what each step did for whom."""
    from foveal.engine import Engine, Settings
    from foveal.engine import Request as Ask
    from foveal.sampler import Sampling

    pipeline, cached_tokens = Pipeline.load(), list[int]()
    ask, size = pipeline.processor.ask, 16
    arrivals = [
        (0, "a picture", ask("What is in this picture?", [PICTURE]), 1),
        (5, "the same, another question", ask("What colour is the circle?", [PICTURE]), 1),
        (8, "text, two replies", ask("What is a circle?"), 2),
        (11, "a clip", ask("What happens?", [CLIP]), 1),
        (16, "the clip again, cancelled", ask("When does the star appear?", [CLIP]), 1),
    ]
    leaves, said = 36, Sampling(temperature=1.0, seed=0, max_tokens=24, ignore_end=True, loop_guard=None)
    num_blocks = int(0.62 * sum(-(-(len(prompt.sequence) + 24) // size) * n for _, _, prompt, n in arrivals))
    settings = Settings(num_blocks=num_blocks, block_size=size, step_tokens=64, slowdown=None, speculation="never")
    cells: list[tuple[int, tuple[int, int], int, str]] = []  # step, whose, rows of the batch, kind
    held, cached, step = list[int](), list[int](), 0
    with Engine(pipeline, settings, background=False) as one:
        plan, encode = one.scheduler.plan, pipeline.model.encode

        def planned(*given: Any) -> Any:
            made = plan(*given)
            for work in made.work:
                cells.append((step, work.sample.order, work.rows, "decode" if work.sample.decodes else "prefill"))
            return made

        def encoded(media: Any) -> Any:
            for number, (_, _, prompt, _) in enumerate(arrivals):
                if any(patches is medium for patches in prompt.patches for medium in media):
                    cells.append((step, (number, 0), 0, "encode"))
            return encode(media)

        one.scheduler.plan, pipeline.model.encode = planned, encoded
        streams: list[Any] = []
        while True:
            for _, _, prompt, n in (arrival for arrival in arrivals if arrival[0] == step):
                streams.append(one.submit(Ask(prompt, said, n)))
            if step == leaves:
                streams[-1].cancel()
            busy = one.step()
            if not busy and len(streams) == len(arrivals):
                break
            cells += [(step, sample.order, 0, "wait") for sample in one.scheduler.waiting]
            held.append(one.pool.num_held)
            cached.append(one.pool.num_cached)
            step += 1
        for stream in streams:
            cached_tokens.append(stream.cached_tokens)
    lanes = [(number, index) for number, (_, _, _, n) in enumerate(arrivals) for index in range(n)]
    figure, (axes, below) = plt.subplots(2, 1, figsize=(9.4, 5.0), height_ratios=(3, 1), sharex=True)
    colours = {"encode": IMAGE, "prefill": TEXT, "decode": VIDEO, "wait": PALE}
    for at, whose, rows, kind in cells:
        height = {"prefill": 0.25 + 0.6 * rows / settings.step_tokens, "decode": 0.25}.get(kind, 0.85)
        axes.bar(at, height, width=0.92, bottom=lanes.index(whose) - 0.42, color=colours[kind], align="edge")
    for lane, (number, index) in enumerate(lanes):
        arrives, what, prompt, _ = arrivals[number]
        label = f"{what}: {len(prompt.sequence)} tokens" if index == 0 else "its second reply"
        if index == 0 and cached_tokens[number]:
            label += f", {cached_tokens[number]} of them cached"
        axes.text(arrives, lane - 0.46, label, va="bottom", fontsize=7.5)
    for kind, name in (("encode", "picture or clip encoded"), ("prefill", "a chunk of the prompt, high as its rows"),
                       ("decode", "one more token"), ("wait", "waits for blocks")):  # fmt: skip
        axes.bar(0, 0, color=colours[kind], label=name)
    axes.set(ylim=(len(lanes) - 0.3, -0.8), yticks=[], title="six replies to five requests; what stands above one another is "
             "one forward pass")  # fmt: skip
    axes.legend(frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, -0.13), fontsize=8)
    steps = range(len(held))
    below.stackplot(steps, held, cached, colors=(VIDEO, PALE), labels=("held", "kept for later"), step="post")
    below.axhline(num_blocks, color=INK, lw=1, ls=":")
    below.set(xlabel="step", ylabel=f"blocks of {size} tokens", ylim=(0, num_blocks * 1.1), xlim=(0, len(held)))
    below.legend(frameon=False, ncols=2, loc="upper left", fontsize=8)
    figure.tight_layout()
    return figure


DRAWN = (
    architecture,
    shapes,
    positions,
    deepstack,
    timestamps,
    vision,
    language,
    thinking,
    data_flow,
    embedded_model,
    embedded_second,
    quantization,
    finetuning,
    world,
    evaluation,
    engine,
    studies,
)
FIGURES = {draw.__name__.replace("_", "-"): draw for draw in DRAWN}


def main(names: list[str]) -> None:
    OUT.mkdir(exist_ok=True)
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        sys.exit(f"there is no figure {unknown[0]!r}; figures are {', '.join(FIGURES)}")
    for name in names or FIGURES:
        figure = FIGURES[name]()
        figure.savefig(OUT / f"{name}.png", dpi=110, bbox_inches="tight", metadata={"Software": None})
        plt.close(figure)
        print(f"{name}.png {(OUT / f'{name}.png').stat().st_size // 1024} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
