"""The plug-in for lmms-eval, against a package of that name with what the plug-in touches of it, spelt as in version 0.7.3."""

from __future__ import annotations

import dataclasses
import importlib
import sys
import tomllib
import types
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import foveal
from foveal.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


class CacheHook:
    def __init__(self) -> None:
        self.kept: list[Any] = []

    def add_partial(self, attr: str, request: Any, result: str) -> None:
        self.kept.append((attr, request, result))


class lmms:
    is_simple = True

    def __init__(self) -> None:
        self.cache_hook, self.task_dict = CacheHook(), {}

    def clean(self) -> None:
        self.cleaned = True


@pytest.fixture
def chat_class(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Find the class as lmms-eval does: entry point, manifest, path."""
    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model", "lmms_eval.models", "lmms_eval.models.registry_v2"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys.modules["lmms_eval.api.model"], "lmms", lmms, raising=False)
    monkeypatch.setattr(sys.modules["lmms_eval.models.registry_v2"], "ModelManifest", ModelManifest, raising=False)
    project = tomllib.loads((Path(foveal.__file__).parents[1] / "pyproject.toml").read_text())["project"]
    ((name, value),) = project["entry-points"]["lmms_eval.models"].items()
    made = EntryPoint(name, value, "lmms_eval.models").load()()
    assert made == ModelManifest("foveal", chat_class_path="foveal.cli.lmms_chat.FovealChat")
    module, _, path = made.chat_class_path.rpartition(".")
    yield getattr(importlib.import_module(module), path)
    sys.modules.pop(module)


def request(generation: dict[str, Any], document: int) -> Any:
    """Make an instance's arguments: context, messages from a document, generation, document, task, split."""

    def messages(document: dict[str, Any]) -> list[dict[str, Any]]:
        content = [{"type": "image", "url": document["image"]}, {"type": "text", "text": document["question"]}]
        return [{"role": "user", "content": content}]

    return types.SimpleNamespace(args=("context", messages, generation, document, "task", "test"))


def test_requests_are_answered_as_foveal_answers(chat_class: Any, checkpoint: str, photo: str) -> None:
    assert issubclass(chat_class, lmms) and chat_class.is_simple is False
    model = chat_class(pretrained=checkpoint, batch_size=4, image_tokens="8..20", max_tokens=5)
    documents = [{"image": Image.open(photo), "question": question} for question in ("What is it?", "Why?")]
    model.task_dict = {"task": {"test": documents}}
    said = model.generate_until([request({}, 0), request({"max_new_tokens": 2, "until": ["\n\n"], "temperature": 0}, 1)])
    pipeline = foveal.load(checkpoint)
    budget = dataclasses.replace(pipeline.processor.budget, image=(8, 20))
    for text, document, most in zip(said, documents, (5, 2), strict=True):
        sampling = foveal.Sampling(max_tokens=most, stop=("\n\n",) if most == 2 else ())
        assert text == pipeline.ask(document["question"], photo, sampling=sampling, budget=budget).answer.text
    assert sorted(kept[2] for kept in model.cache_hook.kept) == sorted(said)
    for call in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(ConfigError, match="foveal answers generate_until tasks"):
            call([])
    model.clean()
    assert model.cleaned


def test_arguments_are_the_options_of_ask(chat_class: Any) -> None:
    for settings, says in (
        ({"image_token": 4}, "image-token"), ({"quantize": 5}, "quantize"), ({"api": "http://h"}, "leave out api"),
        ({"pretrained": "nowhere/at all"}, "neither a folder nor a hub name"),
    ):  # fmt: skip
        with pytest.raises(foveal.FovealError, match=says):
            chat_class(**settings)
