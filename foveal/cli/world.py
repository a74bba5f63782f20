"""`foveal world`: generated cases with exact answers, as training data or to look at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from foveal.cli import session
from foveal.errors import ConfigError


def run(directory: Path, kinds: str | None, count: int, seed: int, split: str) -> None:
    from PIL import Image

    from foveal.world import CASE_KINDS, make, save_clip

    chosen = tuple(kind.strip() for kind in kinds.split(",")) if kinds else CASE_KINDS
    if unknown := [kind for kind in chosen if kind not in CASE_KINDS]:
        raise ConfigError(f"--kinds has {', '.join(unknown)}; kinds are {', '.join(CASE_KINDS)}")
    if count < 1:
        raise ConfigError(f"--count is {count}; ask for one case or more")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} exists and is not an empty folder; name another to write")
    directory.mkdir(parents=True, exist_ok=True)
    with session.progress() as line, (directory / "data.jsonl").open("w", encoding="utf-8") as file:
        for number in range(count):
            kind = chosen[number % len(chosen)]
            line(f"{kind} {number + 1} of {count}")
            case = make(kind, seed + number, split)
            names = []
            for i, item in enumerate(case.items):
                names.append(f"{number:06d}-{kind}-{i}.{'png' if item.kind == 'image' else 'mp4'}")
                if item.kind == "image":
                    Image.fromarray(item.pixels[0]).save(directory / names[-1])
                else:
                    save_clip(directory / names[-1], item.pixels, 1 / float(item.times_s[1]))
            evidence: list[dict[str, Any]] = [
                {"kind": q.kind, "boxes": q.boxes, "pictures": q.pictures, "frames": q.frames, "span_s": q.span_s}
                for q in case.questions
            ]
            record = {"messages": case.messages(names), "kind": kind, "seed": seed + number, "evidence": evidence}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    session.note(f"wrote {directory}: {count} cases in data.jsonl, for foveal data check and foveal train")
