"""A model's name to its local folder: a folder as it is, a hub name through the hub's cache. No torch."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from foveal.errors import CheckpointError

DESCRIPTION = ["*.json", "*.jinja", "*.txt"]
WEIGHTS = ["*.safetensors"]  # never pickles, never code

_SIZES = {size.lower(): size for size in ("2B", "4B", "8B", "32B", "30B-A3B", "235B-A22B")}
_ALIAS = re.compile(r"(?:qwen3-vl[:-])?(?P<size>[0-9a-z-]+?b)(?:-(?P<kind>instruct|thinking))?", re.IGNORECASE)


def hub_name(name: str) -> str | None:
    """Return owner/name for a hub name or a short alias (qwen3-vl:2b, 8B-thinking); None for anything else."""
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and not re.search(r"--|\.\.|[.-](/|$)", name):
        return name
    match = _ALIAS.fullmatch(name)
    if match is None or match["size"].lower() not in _SIZES:
        return None
    return f"Qwen/Qwen3-VL-{_SIZES[match['size'].lower()]}-{(match['kind'] or 'instruct').capitalize()}"


def resolve(name: str | Path, revision: str | None = None, *, weights: bool = True) -> Path:
    """Return a checkpoint's folder, downloading it if it is a hub name. `weights=False` fetches what describes it.

    HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_ENDPOINT and HF_TOKEN are honoured. Raise CheckpointError with the way out.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    repo = hub_name(str(name))
    if repo is None:
        raise CheckpointError(f"{name} is neither a folder nor a hub name such as Qwen/Qwen3-VL-2B-Instruct")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    (enable_progress_bars if sys.stderr.isatty() else disable_progress_bars)()
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=DESCRIPTION + (WEIGHTS if weights else [])))
    except GatedRepoError:
        raise CheckpointError(f"{repo} is gated: accept its terms on its page, then set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise CheckpointError(f"{repo} has no revision {revision!r}; leave it out for the newest") from None
    except RepositoryNotFoundError:
        raise CheckpointError(f"there is no {repo} on the hub, or it is private and HF_TOKEN does not open it") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        why = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else "the hub cannot be reached"
        raise CheckpointError(
            f"{repo} is not in the local cache and {why}; download it once while online, or give a folder with its files"
        ) from None
    except OSError as e:
        raise CheckpointError(
            f"{repo} could not be downloaded ({type(e).__name__}); check the connection and the free disk space, or give a "
            "folder"
        ) from e
