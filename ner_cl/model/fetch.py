"""Models that somebody shared on the Hugging Face hub."""

import re
from pathlib import Path

import huggingface_hub
import transformers

from ner_cl.errors import ModelError

__all__ = ["fetch", "is_hub_id"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
# What a model folder holds. Nothing in it is ever unpickled, and nothing else is worth fetching.
_FILES = ["*.json", "*.jsonl", "*.safetensors", "*.txt", "*.model", "model.onnx"]


def is_hub_id(name: Path) -> bool:
    """Whether a name that is no folder can be that of a repository: `owner/name`, and no folder `owner` is here."""
    return bool(_HUB_ID.fullmatch(name.as_posix())) and name.parts[0] not in (".", "..") and not name.parent.exists()


def fetch(name: str, revision: str | None = None) -> Path:
    """The folder of a model of the hub, in the cache of `huggingface_hub`; offline, what was fetched before.

    Args:
        name: `owner/name`.
        revision: branch, tag or commit; the main branch by default.

    Raises:
        ModelError: if there is none, or the hub cannot be reached and nothing was fetched before.
    """
    transformers.utils.logging.disable_progress_bar()
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=_FILES))
    except Exception as error:  # of many kinds: not there, not allowed, not reached
        reason = " ".join((str(error).strip() or type(error).__name__).splitlines()[0].split())[:160]
        raise ModelError(
            f"{name}: no such model folder, and not to be had from the Hugging Face hub ({reason}); train one with "
            "`ner-cl train` or `ner-cl learn`"
        ) from error
