"""What `ask` and `trace` share: loading a pipeline, and saying on a terminal's stderr what is going on."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from foveal.cli import show
from foveal.cli.options import MediaOptions, ModelOptions, SamplingOptions
from foveal.errors import ConfigError, HubError

if TYPE_CHECKING:
    from foveal.generate import Pipeline
    from foveal.sampler import Sampling


class Progress:
    """One line on stderr while something lasts; nothing when stderr is not a terminal."""

    def __init__(self) -> None:
        self._status: Any = None
        self._console = show.error_console()

    def __call__(self, what: str) -> None:
        """Show what is being done."""
        if not self._console.is_terminal:
            return
        if self._status is None:
            from rich.status import Status

            self._status = Status(what, console=self._console, spinner="dots")
            self._status.start()
        else:
            self._status.update(what)

    def done(self) -> None:
        """Take the line away."""
        if self._status is not None:
            self._status.stop()
            self._status = None


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """Make a Progress that goes away whatever happens."""
    line = Progress()
    try:
        yield line
    finally:
        line.done()


def load(options: ModelOptions, line: Progress) -> Pipeline:
    """Load the model that the options name, and say on stderr when it is the embedded one."""
    if options.model is None:
        note("using the embedded model, which knows simple shapes, numbers and words; name another with -m")
    from foveal.hub import hub_name

    known = options.model is None or hub_name(options.model) is None
    if known:  # a download brings progress bars of its own
        line(f"loading {options.model or 'the embedded model'}")
    if options.device != "cpu":
        import torch

        if options.device.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError(
                f"--device is {options.device} but torch {torch.__version__} finds no GPU; leave it out for the CPU"
            )
    from foveal.generate import Pipeline

    try:
        return Pipeline.load(
            options.model, device=options.device, dtype=options.dtype, bits=options.bits, kv_cache=options.cache_dtype
        )
    except HubError as e:
        from foveal.cli.models import without_weights

        raise HubError(f"{e}{without_weights(options.model)}") from e


def sampling(options: SamplingOptions, generation: Mapping[str, Any]) -> Sampling:
    """Take a checkpoint's generation defaults, changed where an option says so. Raise PromptError for impossible values."""
    from foveal.sampler import Sampling

    changes = options.chosen()
    out = replace(Sampling.from_generation_config(generation), **changes)
    idle = [f"--{name.replace('_', '-')}" for name in ("top_p", "top_k", "min_p", "seed") if name in changes]
    if idle and out.temperature == 0:
        note(f"the temperature is 0, so {' and '.join(idle)} change nothing; add --temperature 0.7 to sample")
    return out


def check(model: ModelOptions, media: MediaOptions, options: SamplingOptions) -> None:
    """Refuse impossible options before anything heavy is imported or loaded."""
    from foveal.patches import Budget
    from foveal.sampler import Sampling

    model.check()
    media.clip_sampling()
    media.budget(Budget())
    replace(Sampling(), **options.chosen())


def media_arguments(options: MediaOptions, pipeline: Pipeline) -> dict[str, Any]:
    """Return the budget and the frames of clips as keyword arguments of Pipeline.ask."""
    return {
        "budget": options.budget(pipeline.processor.budget),
        "clip_sampling": options.clip_sampling(pipeline.processor.clip_sampling),
    }


def note(text: str) -> None:
    """Say something that is not the answer."""
    print(f"foveal: {text}", file=sys.stderr, flush=True)
