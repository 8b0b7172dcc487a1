"""Downloads models that are shared on the Hugging Face hub."""

import re
from pathlib import Path

import huggingface_hub
import transformers

from ner_cl.errors import ModelError, first_line

__all__ = ["fetch", "is_hub_id"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
# The files of a model folder; nothing else is downloaded, and nothing is ever unpickled.
_FILES = ["*.json", "*.jsonl", "*.safetensors", "*.txt", "*.model", "model.onnx"]


def is_hub_id(name: Path) -> bool:
    """Whether a name that is not a folder may be a repository: `owner/name`, with no local folder `owner`."""
    return bool(_HUB_ID.fullmatch(name.as_posix())) and name.parts[0] not in (".", "..") and not name.parent.exists()


def fetch(name: str, revision: str | None = None) -> Path:
    """Downloads a model from the hub and returns its folder in the cache of `huggingface_hub`; offline, the cached one.

    Args:
        name: `owner/name`.
        revision: branch, tag or commit; the main branch by default.

    Raises:
        ModelError: if there is no such model, or the hub is unreachable and the model is not cached.
    """
    transformers.utils.logging.disable_progress_bar()
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=_FILES))
    except Exception as error:  # of many classes: not found, not permitted, not reachable
        raise ModelError(
            f"{name}: no such model folder, and not to be had from the Hugging Face hub ({first_line(error)}); train "
            "one with `ner-cl train` or `ner-cl learn`"
        ) from error
