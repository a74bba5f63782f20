"""Every command's words and options. The work is in files of their own, imported when a command runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

import foveal
from foveal.cli import examining, tuning
from foveal.cli.inputs import refuse_options
from foveal.cli.options import OUTPUT, Flag, KvCache, MediaOptions, ModelOptions, SamplingOptions
from foveal.errors import ConfigError

app = App(
    name="foveal",
    help="Qwen3-VL from pixels to text, on the machine you have.",
    help_epilogue="Bad input ends with exit code 2 and one line on stderr; FOVEAL_DEBUG=1 or --debug shows tracebacks.",
    version=f"foveal {foveal.__version__}",
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
    help_format="plaintext",
)

# A lone "-" is a word (the question from stdin), so leading hyphens are let through; `_check` refuses unknown options.
Word = Annotated[
    str,
    Parameter(allow_leading_hyphen=True, help="Pictures and clips (paths or URLs) and one question in quotes, in any order."),
]


@app.command
def ask(
    *words: Word,
    model: ModelOptions | None = None,
    media: MediaOptions | None = None,
    sampling: SamplingOptions | None = None,
    json: Annotated[Flag, Parameter(help="One JSON object instead of text.")] = False,
    stats: Annotated[Flag, Parameter(help="Times and speeds by stage, memory; on stderr.")] = False,
    show_thinking: Annotated[Flag, Parameter(help="The reasoning, on stderr.")] = False,
    each: Annotated[Flag, Parameter(help="Ask about every file by itself, all at once; one line a file.")] = False,
) -> None:
    """Ask a question about pictures and clips; stream the answer on stdout.

    foveal ask photo.jpg "What is this?"
    """
    _check(words, "ask")
    if each:
        from foveal.cli import each as every

        if stats or show_thinking:
            raise ConfigError("--each writes one line a file; leave out --stats and --show-thinking, --json has the figures")
        return every.run(words, model or ModelOptions(), media or MediaOptions(), sampling or SamplingOptions(), json)
    from foveal.cli.ask import run

    run(words, model or ModelOptions(), media or MediaOptions(), sampling or SamplingOptions(), json, stats, show_thinking)


@app.command
def plan(
    *words: Word,
    model: Annotated[
        str | None,
        Parameter(name=["--model", "-m"], help="As in ask; a bare size such as 8B is a preset here, without a download."),
    ] = None,
    dtype: Annotated[str | None, Parameter(help="float32, bfloat16 or float16; by default what ask takes on a CPU.")] = None,
    quantize: Annotated[Literal["none", "8", "4"] | None, Parameter(help="Price weights packed to 8 or 4 bits.")] = None,
    kv_cache: Annotated[KvCache, Parameter(help="What keys and values are kept as; by default as the weights.")] = "auto",
    media: MediaOptions | None = None,
    system: Annotated[str | None, Parameter(help="System message.")] = None,
    max_tokens: Annotated[int, Parameter(help="Length of the answer to make room for.")] = 256,
    json: Annotated[Flag, Parameter(help="One JSON object instead of tables.")] = False,
) -> None:
    """Say what a question will cost before anything runs: sizes, frames, tokens, memory, FLOPs.

    foveal plan clip.mp4 "What happens?" -m 8B
    """
    _check(words, "plan")
    from foveal.cli.plan import run

    precision = ModelOptions(model, quantize=quantize, kv_cache=kv_cache)
    run(words, model, dtype, precision.bits, precision.cache_dtype, media or MediaOptions(), system, max_tokens, json)


@app.command
def trace(
    *words: Word,
    model: ModelOptions | None = None,
    media: MediaOptions | None = None,
    sampling: SamplingOptions | None = None,
    json: Annotated[Flag, Parameter(help="One JSON object instead of tables.")] = False,
    html: Annotated[Path | None, Parameter(group=OUTPUT, help="Write a page that draws the request.")] = None,
) -> None:
    """Run one request and show every stage: shapes, types, bytes, times.

    foveal trace photo.jpg "What is this?" --html trace.html
    """
    _check(words, "trace")
    from foveal.cli.trace import run

    run(words, model or ModelOptions(), media or MediaOptions(), sampling or SamplingOptions(), json, html)


@app.command
def info(
    model: Annotated[
        str | None, Parameter(help="Folder, hub name, or a preset such as 8B, without a download; else the embedded model.")
    ] = None,
    *,
    json: Annotated[Flag, Parameter(help="One JSON object instead of tables.")] = False,
) -> None:
    """Describe a model and this machine: parameters by part, bytes, taps, context, special tokens."""
    from foveal.cli.info import run

    run(model, json)


@app.command
def new(
    directory: Annotated[Path, Parameter(help="Folder to write; it must not exist or be empty.")],
    *,
    preset: Annotated[str, Parameter(help="2B, 4B, 8B, 32B, 30B-A3B, 235B-A22B or overview.")],
    random: Annotated[bool, Parameter(negative="", help="Fill it with random weights, for timing.")] = False,
    seed: Annotated[int, Parameter(help="Seed of the weights.")] = 0,
    dtype: Annotated[str | None, Parameter(help="float32, bfloat16 or float16; the preset's own by default.")] = None,
) -> None:
    """Write a checkpoint with random weights and a stand-in tokenizer.

    foveal new --preset 2B --random random-2b
    """
    from foveal.cli.new import run

    run(directory, preset, random, seed, dtype)


@app.command
def pack(
    directory: Annotated[Path, Parameter(help="Folder to write; it must not exist or be empty.")],
    *,
    model: Annotated[str | None, Parameter(name=["--model", "-m"], help="Checkpoint folder, or hub name; required.")] = None,
    bits: Annotated[Literal[8, 4], Parameter(help="Width of the weights.")] = 8,
    calibrate: Annotated[
        Path | None,
        Parameter(help="Conversations as foveal train reads them: fewer errors in answers like those."),
    ] = None,
    conversations: Annotated[int | None, Parameter(help="How many of them to run through the plain model (64).")] = None,
) -> None:
    """Write a checkpoint with its weights packed to 8 or 4 bits; loading one maps it, which takes no time.

    foveal pack qwen-2b-4bit -m 2B --bits 4
    """
    from foveal.cli.pack import run

    run(directory, model, bits, calibrate, conversations)


@app.command
def world(
    directory: Annotated[Path, Parameter(help="Folder to write; it must not exist or be empty.")],
    *,
    kinds: Annotated[str | None, Parameter(help="Kinds in turn, such as receipt,chart; all by default.")] = None,
    count: Annotated[int, Parameter(help="Cases to make.")] = 16,
    seed: Annotated[int, Parameter(help="Seed of the first; the others follow.")] = 0,
    split: Annotated[str, Parameter(help="test has fonts, words and layouts of its own; any other name trains.")] = "train",
) -> None:
    """Write generated pictures and clips with questions and exact answers, as foveal train reads them.

    foveal world receipts --kinds receipt --count 100
    """
    from foveal.cli.world import run

    run(directory, kinds, count, seed, split)


@app.command
def bench(
    *,
    model: ModelOptions | None = None,
    picture: Annotated[str, Parameter(help="Size of the pictures asked about, in pixels.")] = "640x480",
    requests: Annotated[int, Parameter(help="How many at once.")] = 8,
    tokens: Annotated[int, Parameter(help="Length of every reply.")] = 64,
    runs: Annotated[int, Parameter(help="Readings; medians are reported.")] = 3,
    json: Annotated[Flag, Parameter(help="One line of JSON instead of a table.")] = False,
) -> None:
    """Time a model: the first token, the same picture again, decoding, and several requests at once.

    foveal bench -m 2B --quantize 8
    """
    from foveal.cli.bench import run

    run(model or ModelOptions(), picture, requests, tokens, runs, json)


def _check(words: Iterable[str], command: str) -> None:
    """Refuse options of other commands, and of none, among the words of this one."""
    refuse_options(words, command, _options)


def _options() -> dict[str, list[str]]:
    """List the names of every command's options."""
    listed = {}
    for name in app:
        if not name.startswith("-") and app[name].default_command is not None:
            arguments = app[name].assemble_argument_collection()
            listed[name] = [option for one in arguments for option in one.names if option.startswith("-")]
    return listed


tuning.register(app)
examining.register(app)
