"""`foveal eval` as a person runs it: arms, a run that goes on, a server, mistakes."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from foveal.cli.arms import Options, from_settings, read_arms
from foveal.cli.options import MediaOptions, ModelOptions, SamplingOptions
from foveal.errors import ConfigError
from foveal.evaluate.run import Run as Examination
from tests.cli.test_commands import refused
from tests.cli.test_process import ENDLESS, start
from tests.command import Run
from tests.evaluate.server import Fake

SHORT = ("--max-tokens", 3)


def own_file(folder: Path, photo: str) -> Path:
    """Write questions about a picture that need no reading of the world."""
    records = [
        {"image": photo, "conversations": [{"from": "human", "value": f"<image>{question}?"}, {"from": "gpt", "value": "red"}]}
        for question in ("What", "Which", "Why")
    ]
    file = folder / "mine.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_arms_side_by_side_then_one_more(run_foveal: Run, checkpoint: str, photo: str, tmp_path: Path) -> None:
    file, out = own_file(tmp_path, photo), tmp_path / "run"
    arms = ("--arm", "plain:", "--arm", "small:image-tokens=4..8")
    done = run_foveal("eval", file, "-m", checkpoint, *SHORT, *arms, "--image-tokens", "9..20", "--output", out)
    assert done.code == 0 and f"wrote {out / 'report.html'}" in done.err
    for words in ("mine", "plain", "small less plain", "right", "cer", "length 3"):
        assert words in done.out, words
    intervals = re.findall(r"\[[^\]]*\]", done.out)
    assert intervals and not any("\n" in one for one in intervals)
    found = lines(out)
    assert [line["arm"] for line in found] == ["plain"] * 3 + ["small"] * 3
    assert all(plain["tokens"]["prompt"] > small["tokens"]["prompt"] for plain, small in zip(found[:3], found[3:], strict=True))
    asked = run_foveal("ask", photo, "What?", "-m", checkpoint, *SHORT, "--image-tokens", "9..20")
    (answer,) = [line["answer"] for line in found[:3] if line["id"] == "mine/0"]
    assert answer == asked.out[:-1]  # settings are those of ask
    again = run_foveal(
        "eval", "--output", out, "--resume", "--arm", f"hot:model={checkpoint},temperature=1.5,max-tokens=3", "--json"
    )
    report = json.loads(again.out)
    assert again.code == 0 and [arm["name"] for arm in report["arms"]] == ["plain", "small", "hot"]
    assert report == json.loads((out / "report.json").read_text()) and lines(out)[:6] == found
    assert report["arms"][2]["settings"] == {"model": checkpoint, "temperature": 1.5, "max-tokens": 3}
    same = run_foveal("eval", "--output", out, "--resume", "--json")
    assert json.loads(same.out) == report and len(lines(out)) == 9


def test_ctrl_c_keeps_answers(run_foveal: Run, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add, out = Examination.add, tmp_path / "run"

    def interrupted(self: Examination, line: Any) -> None:
        add(self, line)
        if len(self.lines) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Examination, "add", interrupted)
    done = run_foveal("eval", "colour", "--items", 5, "-m", checkpoint, *SHORT, "--output", out)
    assert done.code == 130 and f"2 answers (2 new) are kept in {out}; --resume goes on" in done.err
    monkeypatch.setattr(Examination, "add", add)
    assert run_foveal("eval", "--output", out, "--resume").code == 0
    assert len({line["id"] for line in lines(out)}) == len(lines(out)) == 5


def test_ctrl_c_while_the_engine_works(checkpoint: str, photo: str, tmp_path: Path) -> None:
    """In a process of its own: one short answer, then answers without end."""
    out = tmp_path / "run"
    arms = ("--arm", "short:max-tokens=1", "--arm", "endless:")
    with start("eval", str(own_file(tmp_path, photo)), "-m", checkpoint, *ENDLESS, *arms, "--output", str(out)) as process:
        assert process.stdout is not None and process.stderr is not None
        while not (out / "answers.jsonl").exists() or len(lines(out)) < 3:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        err = process.stderr.read().decode()
        assert process.wait(60) == 130
    assert "Traceback" not in err and "are kept in" in err and err.endswith("foveal: interrupted\n")
    assert {line["arm"] for line in lines(out)[:3]} == {"short"}


def test_a_server_is_examined_with_the_same_tasks(run_foveal: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    fake, out = Fake(), tmp_path / "run"
    words = ("--items", 2, "--api", fake.url, "-m", "qwen", "--system", "Be brief.", "--output", out, "--json")
    done = run_foveal("eval", "colour", *words)
    report = json.loads(done.out)
    assert done.code == 0 and report["arms"][0]["name"] == "qwen" and report["arms"][0]["prompt_tokens"] == 70
    assert {sent["key"] for sent in fake.seen} == {"Bearer secret"} and "secret" not in (out / "exam.json").read_text()
    assert all(sent["messages"][0]["content"] == "Be brief." for sent in fake.seen)
    fake.reply = lambda body: (401, {}, "{}")
    failed = run_foveal("eval", "colour", *words[:-3], "--output", tmp_path / "other")
    refused(failed, 2, "colour/", "answered 401", "set OPENAI_API_KEY")


def test_arms_in_words() -> None:
    base = Options(ModelOptions(model="2B", quantize="8"), sampling=SamplingOptions(max_tokens=64))
    made = read_arms(["plain:quantize=none", "q4:quantize=4,image-tokens=64..256", "words:stop=a, b,temperature=0.5"], base)
    assert made["plain"].model == ModelOptions(model="2B", quantize="none") and made["plain"].sampling == base.sampling
    assert made["q4"].model.bits == 4 and made["q4"].media == MediaOptions(image_tokens="64..256")
    assert made["words"].sampling == SamplingOptions(max_tokens=64, stop=["a, b"], temperature=0.5)
    assert read_arms([], base) == {"2B": base}
    assert list(read_arms([], Options())) == ["embedded"]
    for options in made.values():  # what a run keeps is enough to make them again
        assert from_settings(json.loads(json.dumps(options.given()))) == options


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (":quantize=8", "begins with no name"), ("../x:", "begins with no name"), ("a:quantize", "'quantize' is no setting"),
        ("a:qantize=8", "qantize"), ("a:quantize=5", "quantize"), ("a:temperature=hot", "temperature"), ("a:=5", "--arm"),
    ],
)  # fmt: skip
def test_arms_that_make_no_sense(spec: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_arms([spec], Options())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("cuont",), "did you mean count"),
        ((), "there is nothing to ask"),
        (("gone.jsonl",), "gone.jsonl: no such file"),
        (("count", "--items", "0"), "0 items"),
        (("count", "--difficulty", "hard"), "hard"),
        (("count", "--arm", "a:", "--arm", "a:"), "two arms are called a"),
        (("count", "--arm", "a:image-tokens=9..2"), "--image-tokens is '9..2'"),
        (("count", "-m", "8B", "--arm", "a:temperature=-1"), "temperature is -1"),
        (("count", "--resume"), "--resume needs --output"),
        (("count", "--resume", "--output", "run"), "takes tasks and settings from the run"),
        (("--resume", "--output", "gone"), "gone holds no examination"),
        (("count", "--api", "localhost:8000", "-m", "x"), "the server's address is 'localhost:8000'"),
        (("count", "--api", "http://localhost"), "has no model; name the server's with --model"),
        (("count", "--api", "http://h", "-m", "x", "--fps", "2"), "--fps, which a server decides"),
        (("count", "--api", "http://h", "-m", "x", "--arm", "a:quantize=8"), "arm a has --quantize, which a server decides"),
    ],
)
def test_mistakes_end_with_2_and_one_line(
    run_foveal: Run, words: tuple[str, ...], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(run_foveal("eval", *words), 2, says)
    assert not list(tmp_path.iterdir())
