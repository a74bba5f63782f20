"""foveal as a chat model of lmms-eval; imported by lmms-eval alone, which is not a dependency."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from lmms_eval.api.model import lmms

from foveal.cli import arms, session
from foveal.errors import ConfigError
from foveal.sampler import Sampling

_TIMES = {"start_time": "video_start", "end_time": "video_end"}  # theirs, and how a part says it here


class FovealChat(lmms):
    """A model behind foveal's engine, which batches by itself: lmms-eval's own batch size changes nothing.

    Arguments are the options of `foveal ask` (image_tokens=64..1024, quantize=8, max_tokens=512, ...), and `pretrained` is
    --model. What a task says about generation comes before them.
    """

    is_simple = False

    def __init__(
        self, pretrained: str | None = None, batch_size: Any = None, max_batch_size: Any = None, device: str | None = None,
        **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        given = {"model": pretrained, "device": device} | settings
        words = {key.replace("_", "-"): str(value) for key, value in given.items() if value is not None}
        options = arms.from_settings(words)
        if options.server.api is not None:
            raise ConfigError("lmms-eval has its own model for servers (async_openai); leave out api")
        arms.check("foveal", options)
        with session.progress() as line:
            self._local = arms.local(options, line)

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Answer requests whose arguments are (context, doc_to_messages, generation, document, task, split)."""
        with ThreadPoolExecutor(self._local.parallel) as pool:
            return list(pool.map(self._answer, requests))

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Refuse: what the next round asks is up to the task's own code, which expects another protocol."""
        raise ConfigError("foveal answers generate_until tasks of lmms-eval, and no multi-round ones; choose another task")

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Refuse: chat models are asked for text."""
        raise ConfigError("foveal answers generate_until tasks of lmms-eval, and no loglikelihood ones; choose another task")

    def clean(self) -> None:
        """Give the memory back."""
        self._local.close()
        super().clean()

    def _answer(self, request: Any) -> str:
        context, to_messages, generation, document, task, split = request.args
        messages = [_message(message) for message in to_messages(self.task_dict[task][split][document])]
        said = self._local.ask(messages, _sampling(self._local.sampling, generation))
        self.cache_hook.add_partial("generate_until", (context, generation), said.text)
        return said.text


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Spell a message as foveal does."""
    if isinstance(message["content"], str):
        return dict(message)
    parts = [{_TIMES.get(key, key): value for key, value in part.items()} for part in message["content"]]
    return {**message, "content": parts}


def _sampling(base: Sampling, generation: Mapping[str, Any]) -> Sampling:
    """Put a task's generation arguments on top; those about other ways of decoding are left alone."""
    changes: dict[str, Any] = {}
    if generation.get("max_new_tokens"):
        changes["max_tokens"] = int(generation["max_new_tokens"])
    if until := generation.get("until"):
        changes["stop"] = (until,) if isinstance(until, str) else tuple(until)
    if not generation.get("do_sample", True):
        changes["temperature"] = 0.0
    elif generation.get("temperature") is not None:
        changes["temperature"] = float(generation["temperature"])
    if generation.get("top_p"):
        changes["top_p"] = float(generation["top_p"])
    return replace(base, **changes)
