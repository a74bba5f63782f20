"""The plug-in for lmms-eval: `--model foveal --model_args pretrained=2B,quantize=8`, arguments as the options of `foveal ask`.

lmms-eval finds `manifest` by the entry point `lmms_eval.models` of this package, and imports lmms_chat.py when it is asked for.
"""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """Tell lmms-eval what stands behind the name foveal."""
    from lmms_eval.models.registry_v2 import ModelManifest  # whoever calls this is lmms-eval

    return ModelManifest(model_id="foveal", chat_class_path="foveal.cli.lmms_chat.FovealChat")
