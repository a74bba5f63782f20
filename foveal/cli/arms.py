"""Arms of an examination from the words of a command line: `--arm name:key=value,...`, keys as the options of `foveal ask`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar

from cyclopts import App, Group, Parameter

from foveal.cli.options import MediaOptions, ModelOptions, SamplingOptions
from foveal.errors import ConfigError

if TYPE_CHECKING:
    from foveal.cli.session import Progress
    from foveal.evaluate import Answerer, Arm, Local

SERVER = Group("Server", sort_key=3)
# A server is asked for these; what it does with pictures and with thoughts is its own affair.
_SERVER_DECIDES = ("device", "dtype", "quantize", "kv_cache", *(f.name for f in fields(MediaOptions)), "thinking_tokens")


@Parameter(name="*", group=SERVER)
@dataclass(frozen=True)
class ServerOptions:
    """A server of the OpenAI API instead of a model of one's own."""

    api: Annotated[str | None, Parameter(help="Its address; --model is its name there, OPENAI_API_KEY its key.")] = None
    """Address such as http://localhost:8000/v1."""

    api_timeout: Annotated[float, Parameter(help="Seconds of silence before a request is given up.")] = 120.0
    api_retries: Annotated[int, Parameter(help="Repetitions of a request that failed for a reason that may pass.")] = 4
    api_clips: Annotated[
        Literal["video", "frames"], Parameter(help="Send clips as MP4, or as pictures with their times before them.")
    ] = "video"


Some = TypeVar("Some", ModelOptions, MediaOptions, SamplingOptions, ServerOptions)


class Options(NamedTuple):
    """All settings of an arm."""

    model: ModelOptions = ModelOptions()
    media: MediaOptions = MediaOptions()
    sampling: SamplingOptions = SamplingOptions()
    server: ServerOptions = ServerOptions()

    def given(self) -> dict[str, Any]:
        """Return what differs from the defaults, by option."""
        return {
            f.name.replace("_", "-"): value
            for options in self for f in fields(options) if (value := getattr(options, f.name)) != f.default
        }  # fmt: skip


_reader = App(
    name="--arm", result_action="return_value", exit_on_error=False, print_error=False, help_flags=(), version_flags=()
)


@_reader.default
def _read(
    *, model: ModelOptions | None = None, media: MediaOptions | None = None, sampling: SamplingOptions | None = None,
    server: ServerOptions | None = None,
) -> Options:  # fmt: skip
    return Options(model or ModelOptions(), media or MediaOptions(), sampling or SamplingOptions(), server or ServerOptions())


def read_arms(specs: Sequence[str], base: Options) -> dict[str, Options]:
    """Read `--arm` words, each a name and what it changes of the options that stand beside them all.

    Without any there is one arm, named after the model. Raise ConfigError for a setting that makes no sense.
    """
    if not specs:
        return {_own_name(base): base}
    out: dict[str, Options] = {}
    for spec in specs:
        name, _, text = spec.partition(":")
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise ConfigError(f"--arm {spec!r} begins with no name; expected name:key=value,..., such as q8:quantize=8")
        if name in out:
            raise ConfigError(f"two arms are called {name}; give each its own name")
        out[name] = _changed(base, _settings(text, spec), f"--arm {spec!r}")
    return out


def from_settings(settings: Mapping[str, Any]) -> Options:
    """Make options of the settings a run has kept, or that lmms-eval was given."""
    return _changed(Options(), settings, "the settings")


def _settings(text: str, spec: str) -> dict[str, str]:
    """Cut key=value,key=value; a comma before anything else belongs to the value."""
    found = {}
    for part in re.split(r",(?=[a-z][a-z-]*=)", text) if text else ():
        key, is_setting, value = part.partition("=")
        if not is_setting or not value:
            raise ConfigError(f"--arm {spec!r}: {part!r} is no setting; expected key=value, such as image-tokens=64..256")
        found[key.strip()] = value
    return found


def _changed(base: Options, settings: Mapping[str, Any], where: str) -> Options:
    """Put settings on top of options, read as the command line reads them."""
    from cyclopts import CycloptsError

    words = [f"--{key}={one}" for key, value in settings.items() for one in (value if isinstance(value, list) else [value])]
    try:
        read = _reader(words)
    except CycloptsError as error:
        raise ConfigError(f"{where}: {error}") from None
    names = {key.replace("-", "_") for key in settings}
    return Options(
        _put(base.model, read.model, names), _put(base.media, read.media, names), _put(base.sampling, read.sampling, names),
        _put(base.server, read.server, names),
    )  # fmt: skip


def _put(old: Some, new: Some, names: set[str]) -> Some:
    return replace(old, **{f.name: getattr(new, f.name) for f in fields(old) if f.name in names})


def _own_name(options: Options) -> str:
    name = options.model.model or ("server" if options.server.api else "embedded")
    return re.sub(r"[^\w.+-]", "-", name.rstrip("/").rpartition("/")[2]).lstrip(".+-") or "model"


def check(name: str, options: Options) -> None:
    """Refuse impossible options before anything is loaded."""
    from foveal.cli import session

    model, media, sampling, server = options
    if server.api is None:
        session.check(model, media, sampling)
        return
    given = options.given()
    for field in _SERVER_DECIDES:
        if (option := field.replace("_", "-")) in given:
            raise ConfigError(f"arm {name} has --{option}, which a server decides for itself; leave it out beside --api")
    if model.model is None:
        raise ConfigError(f"arm {name} has no model; name the server's with --model")
    _server(options)


def make_arm(name: str, options: Options, line: Progress) -> Arm:
    """Make an arm that is loaded when its turn comes."""
    from foveal.evaluate import Arm

    return Arm(name, options.given(), lambda: _remote(options) if options.server.api else local(options, line))


def local(options: Options, line: Progress) -> Local:
    """Load a model; its answers are greedy unless a temperature is given."""
    from foveal.cli import session
    from foveal.evaluate import Local
    from foveal.sampler import Sampling

    pipeline = session.load(options.model, line)
    changes = {"temperature": 0.0} | options.sampling.chosen()
    sampling = replace(Sampling.from_generation_config(pipeline.processor.generation), **changes)
    return Local(pipeline, sampling, options.sampling.system, session.media_arguments(options.media, pipeline))


def _server(options: Options) -> Any:
    from foveal.evaluate.api import Server

    _, _, _, server = options
    assert server.api is not None and options.model.model is not None
    return Server(
        server.api, options.model.model, os.environ.get("OPENAI_API_KEY"), server.api_timeout, server.api_retries,
        server.api_clips,
    )  # fmt: skip


def _remote(options: Options) -> Answerer:
    from foveal.evaluate.api import Remote

    return Remote(_server(options), {"temperature": 0.0} | options.sampling.chosen(), system=options.sampling.system)
