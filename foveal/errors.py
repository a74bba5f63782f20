"""Every exception that foveal raises on purpose.

FovealError (a ValueError)      something the caller can put right
├── ConfigError                 a config.json, preset or option that makes no sense
├── CheckpointError             tensors missing, unexpected or misshapen; files that are not there
│   └── HubError                a hub's files that cannot be had: no such name, no connection, half a download
├── MediaError                  a picture or clip that cannot be read, or exceeds a limit
├── PromptError                 messages, placeholders and media that do not belong together
│   └── ContextError            a prompt that does not fit the model's context
├── CapacityError               a request that the engine's memory can never hold; the message has the numbers
├── BusyError                   a queue that is full: the request may be sent again later
├── DataError                   a file or line of data that cannot be used; the message begins with its place
├── ServerError                 another server, asked for answers, that cannot be reached or will not answer
├── DivergenceError             a training run whose loss is not finite or ran away; names the step, the batch, the checkpoint
└── MissingDependency           an optional package is needed; the message names the install command

EngineError (a RuntimeError)    a step of the engine that failed, or an engine that was closed, under a running request

Anything else that escapes is a bug in foveal. Messages say what was found, what was needed and what to do.
"""


class FovealError(ValueError):
    """Base of every error the caller can put right."""


class ConfigError(FovealError):
    """A configuration, preset or option that makes no sense."""


class CheckpointError(FovealError):
    """A checkpoint whose files or tensors are not what the configuration promises."""


class HubError(CheckpointError):
    """Files of the hub that cannot be had: no such name, no connection, an unfinished download."""


class MediaError(FovealError):
    """A picture or clip that cannot be read or exceeds a limit."""


class PromptError(FovealError):
    """Messages, placeholders and media that do not belong together."""


class ContextError(PromptError):
    """A prompt that does not fit the model's context."""


class CapacityError(FovealError):
    """A request that the engine's memory can never hold; the message has the numbers."""


class BusyError(FovealError):
    """A queue that is full; the request may be sent again later."""


class EngineError(RuntimeError):
    """A step that failed, or an engine that was closed, while a request was running. `__cause__` is why."""


class DataError(FovealError):
    """A file or line of data that cannot be used; the message begins with its place."""


class ServerError(FovealError):
    """Another server, asked for answers, that cannot be reached or will not answer."""


class DivergenceError(FovealError):
    """A training run whose loss is not finite or ran away; names the step, the batch and the last good checkpoint."""


class MissingDependency(FovealError):
    """An optional package is needed; the message names the command that installs it, from a clone of foveal."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f'{purpose} needs {package}, which is not installed; run: pip install -e ".[{extra}]"')
