"""A model's name to its local folder: a folder as it is, a hub name through the hub's cache. No torch."""

from __future__ import annotations

import errno
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foveal.errors import CheckpointError, ConfigError, HubError

EMBEDDED = Path(__file__).parent / "assets" / "mini"  # the embedded model
DESCRIPTION = ["*.json", "*.jinja", "*.txt"]
WEIGHTS = ["*.safetensors"]  # never pickles, never code
OTHER_FOLDERS = ["*/*"]  # a checkpoint lies at the top; below it are other formats of the same weights

_SIZES = {size.lower(): size for size in ("2B", "4B", "8B", "32B", "30B-A3B", "235B-A22B")}
_ALIAS = re.compile(r"(?:qwen3-vl[:-])?(?P<size>[0-9a-z-]+?b)(?:-(?P<kind>instruct|thinking))?(?P<fp8>-fp8)?", re.IGNORECASE)
_WAY_OUT = "or give a folder with its files"


def hub_name(name: str) -> str | None:
    """Return owner/name for a hub name or a short alias (qwen3-vl:2b, 8B-thinking, 4b-fp8); None for anything else."""
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and len(name) <= 96 and not re.search(r"--|\.\.|[.-](/|$)", name):
        return name
    match = _ALIAS.fullmatch(name)
    if match is None or match["size"].lower() not in _SIZES:
        return None
    kind = (match["kind"] or "instruct").capitalize()
    return f"Qwen/Qwen3-VL-{_SIZES[match['size'].lower()]}-{kind}{'-FP8' if match['fp8'] else ''}"


def resolve(name: str | Path, revision: str | None = None, *, weights: bool = True) -> Path:
    """Return a checkpoint's folder, downloading it if it is a hub name. `weights=False` fetches what describes it.

    A folder of that name goes before a hub name or alias. revision: a branch, tag or commit of the hub. Progress is shown on
    stderr if that is a terminal. HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN and the hub's other variables
    are honoured. Raise CheckpointError with the way out; HubError, a kind of it, where the hub is what fails.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if revision is not None:
            raise ConfigError(f"{name} is a folder, and has no revision {revision!r}; leave the revision out")
        return path
    if path.is_file():
        raise CheckpointError(f"{name} is a file; name the folder that holds config.json and the weights")
    repo = hub_name(str(name))
    if repo is None:
        raise CheckpointError(f"{name} is neither a folder nor a hub name such as Qwen/Qwen3-VL-2B-Instruct")
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import tqdm

    class Progress(tqdm):
        """The hub's own bar, which also draws where nobody sees it."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs if sys.stderr.isatty() else {**kwargs, "disable": True})

    patterns = DESCRIPTION + (WEIGHTS if weights else [])
    with _explained(repo, revision):
        folder = snapshot_download(
            repo, revision=revision, allow_patterns=patterns, ignore_patterns=OTHER_FOLDERS, tqdm_class=Progress
        )
    return _complete(Path(folder), repo, weights)


def check_new(directory: Path) -> None:
    """Refuse to write a checkpoint where something is already: its weights would go. Raise CheckpointError."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise CheckpointError(f"{directory} exists and is not an empty folder; name another one")


def _complete(folder: Path, repo: str, weights: bool) -> Path:
    """Require the files that make a checkpoint: offline, an earlier download may have stopped early."""
    if not (folder / "config.json").is_file():
        raise HubError(f"{repo} holds no config.json; it is not a model in the layout foveal reads (safetensors)")
    if not weights:
        return folder
    index = folder / "model.safetensors.index.json"
    wanted = ["model.safetensors"]
    if index.is_file() and not (folder / wanted[0]).is_file():
        try:
            wanted = sorted({str(file) for file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
        except (ValueError, KeyError, AttributeError, TypeError):
            return folder  # the loader says what is wrong with it
    missing = [file for file in wanted if not (folder / file).is_file()]
    if missing:
        some = ", ".join(missing[:4]) + (" and more" if len(missing) > 4 else "")
        raise HubError(
            f"the local copy of {repo} lacks {some}: the weights were not downloaded to the end, or the hub has them in "
            f"another format only; run again while online, {_WAY_OUT}"
        )
    return folder


@contextmanager
def _explained(repo: str, revision: str | None) -> Iterator[None]:
    """Turn the hub's exceptions into HubErrors that say what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError:
        raise HubError(
            f"{repo} is gated: accept its terms on its page while logged in, then set HF_TOKEN or run hf auth login"
        ) from None
    except RevisionNotFoundError:
        raise HubError(f"{repo} has no revision {revision!r}; leave it out for the newest") from None
    except RepositoryNotFoundError:
        raise HubError(
            f"there is no {repo} on the hub, or it is private and HF_TOKEN does not open it; check the spelling, {_WAY_OUT}"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        raise HubError(
            f"{repo} is not complete in the local cache and {why}; download it once while online, {_WAY_OUT}"
        ) from None
    except HfHubHTTPError as e:
        raise HubError(f"the hub answered {e.response.status_code} for {repo}; try again later, {_WAY_OUT}") from e
    except Exception as e:
        if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HubError(f"the disk is full: {repo} does not fit {constants.HF_HUB_CACHE}; HF_HOME moves it") from e
        if isinstance(e, OSError) or type(e).__module__.split(".")[0] in ("httpx", "httpx2", "huggingface_hub", "hf_xet"):
            said = f"{type(e).__name__}: {e}".rstrip(": ")
            raise HubError(f"{repo} could not be downloaded ({said}); check the connection, {_WAY_OUT}") from e
        raise
