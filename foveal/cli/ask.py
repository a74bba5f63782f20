"""`foveal ask`: one question, its answer streamed on stdout."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from foveal.cli import session, show
from foveal.cli.inputs import read_inputs
from foveal.cli.options import MediaOptions, ModelOptions, SamplingOptions
from foveal.cli.stages import stages

if TYPE_CHECKING:
    from foveal.generate import Answer, Pipeline, Reply

_ENDINGS = {
    "length": "the answer was cut after {tokens} tokens; --max-tokens allows more",
    "context": "the answer was cut: the context is full",
    "loop": "the answer was ended because it repeated itself; a repetition or presence penalty may help",
}


def run(
    words: tuple[str, ...], model: ModelOptions, media: MediaOptions, sampling: SamplingOptions,
    as_json: bool, stats: bool, show_thinking: bool,
) -> None:  # fmt: skip
    inputs = read_inputs(words)
    session.check(model, media, sampling)
    with session.progress() as line:
        pipeline = session.load(model, line)
        chosen = session.sampling(sampling, pipeline.processor.generation)
        if inputs.files:
            line(f"reading {len(inputs.files)} file{'s' * (len(inputs.files) > 1)}")
        arguments = session.media_arguments(media, pipeline)
        reply = pipeline.ask(inputs.question, *inputs.files, system=sampling.system, sampling=chosen, **arguments)
        line("looking" if inputs.files else "thinking")
        if as_json:
            answer = reply.answer
            line.done()
            show.write_json(answer_json(answer, pipeline.name))
        else:
            answer = stream(reply, line, show_thinking)
    if not as_json and (ending := _ENDINGS.get(answer.finish_reason)):
        session.note(ending.format(tokens=answer.stats.generated_tokens))
    if not as_json and answer.reasoning is not None and not answer.text:
        session.note("the model spent the whole answer thinking; --thinking-tokens bounds that, --show-thinking shows it")
    if stats:
        print_stats(pipeline, reply)


def stream(reply: Reply, line: session.Progress, show_thinking: bool) -> Answer:
    """Write the answer on stdout as it comes, and the reasoning, when asked for, dimmed on stderr."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a letter gets "?", not a traceback
    aside = show.error_console()
    thought = False
    for piece in reply.pieces():
        if piece.channel == "answer":
            line.done()
            if thought:
                aside.print("\n", end="")
                thought = False
            sys.stdout.write(piece.text)
            sys.stdout.flush()
        elif show_thinking:
            line.done()
            aside.print(piece.text, end="", style="dim", markup=False, highlight=False)
            thought = True
        else:
            line("thinking")
    line.done()
    sys.stdout.write("\n")
    sys.stdout.flush()
    return reply.answer


def answer_json(answer: Answer, model: str) -> dict[str, Any]:
    """Arrange an answer for programs; token counts are named as in the OpenAI API."""
    stats = answer.stats
    return {
        "model": model,
        "answer": answer.text,
        "reasoning": answer.reasoning,
        "finish_reason": answer.finish_reason,
        "usage": {
            "prompt_tokens": stats.prompt_tokens,
            "completion_tokens": stats.generated_tokens,
            "total_tokens": stats.prompt_tokens + stats.generated_tokens,
            "prompt_tokens_details": {
                "text": stats.text_tokens, "image": stats.image_tokens, "video": stats.video_tokens,
            },
        },
        "timings": {name: value for name, value in asdict(stats).items() if name.endswith("_s")}
        | {"tokens_per_s": stats.tokens_per_s},
        "peak_memory_bytes": stats.peak_memory_bytes,
    }  # fmt: skip


def print_stats(pipeline: Pipeline, reply: Reply) -> None:
    """Write --stats on stderr. The machine's limits are measured here if they are not known yet, after the answer."""
    from foveal.limits import limits

    model, answer, out = pipeline.model, reply.answer, show.error_console()
    stats, measured = answer.stats, limits() if model.device.type == "cpu" else None
    kinds = {"text": stats.text_tokens, "picture": stats.image_tokens, "clip": stats.video_tokens}
    by_kind = " + ".join(f"{count:,} {kind}" for kind, count in kinds.items() if count)
    rows = [stage.row() for stage in stages(model, reply.request, stats, measured)]
    out.print(show.table("", rows, ("", "time", "speed", "of this machine's limit"), right=(1, 2)))
    out.print(show.table("", [
        ("prompt", f"{stats.prompt_tokens:,} tokens = {by_kind}"),
        ("answer", f"{stats.generated_tokens:,} tokens, ended by {answer.finish_reason}"),
        ("first token", show.seconds(stats.first_token_s)),
        ("speed", f"{stats.tokens_per_s:.1f} tokens/s decoding, "
         f"{stats.prompt_tokens / stats.prefill_s if stats.prefill_s else 0:.0f} tokens/s prefill"),
        ("peak memory", show.num_bytes(stats.peak_memory_bytes)),
        ("weights", weights(pipeline)),
    ]))  # fmt: skip
    if measured is not None and not measured.quiet:
        session.note("the machine was busy while its limits were measured: they are too low")


def weights(pipeline: Pipeline) -> str:
    """Say in which precision the weights are, and why where it was chosen."""
    from foveal.model.checkpoint import plain
    from foveal.model.quantize import packed_bits

    if pipeline.choice is not None:
        return f"{pipeline.choice.path}: {pipeline.choice.why}; --quantize or --dtype overrules"
    bits = packed_bits(pipeline.model)
    return f"{bits} bits" if bits else plain(pipeline.model.dtype)
