"""What strategies keep in a model folder for later steps; read lazily, since prediction never needs it."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, final

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ner_cl.data.readers import read_sentences
from ner_cl.data.writers import write_sentences
from ner_cl.errors import ModelError, first_line
from ner_cl.files import publish_folder, recover_folders
from ner_cl.model.ner_model import SENTENCE_PREFIX
from ner_cl.types import Sentence

__all__ = ["FilesByName", "forget_sentences", "kept_in", "read_tensors", "sha256_of", "write_kept"]

T = TypeVar("T")

STATE_VERSION = 1


@final
class FilesByName(Mapping[str, T], Generic[T]):
    """A mapping from file names without extension to file contents, each read at the first look-up.

    Args:
        paths: path of each file, by name.
        read: reads one file.
    """

    def __init__(self, paths: Mapping[str, Path], read: Callable[[Path], T]) -> None:
        self._paths = paths
        self._read = read
        self._found: dict[str, T] = {}

    def __getitem__(self, name: str) -> T:
        """The content of the file."""
        if name not in self._found:
            self._found[name] = self._read(self._paths[name])
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        """Iterates over the names."""
        return iter(self._paths)

    def __len__(self) -> int:
        """The number of files."""
        return len(self._paths)


def kept_in(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The tensors and sentences that strategies keep in the model folder, by strategy name."""
    kept = folder / "strategy"
    return (
        FilesByName({path.stem: path for path in sorted(kept.glob("*.safetensors"))}, _read_state),
        FilesByName({path.stem: path for path in sorted(kept.glob("*.jsonl"))}, _read_sentences),
    )


def write_kept(
    states: Mapping[str, Mapping[str, Tensor]], sentences: Mapping[str, Sequence[Sentence]], folder: Path
) -> None:
    """Writes what strategies keep to `strategy/` in a model folder, which is made only if they keep something."""
    if states or sentences:
        (folder / "strategy").mkdir()
    for name, state in sorted(states.items()):
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in sorted(state.items())}
        safetensors.torch.save_file(tensors, folder / "strategy" / f"{name}.safetensors", _about(name, folder))
    for name, lines in sorted(sentences.items()):
        write_sentences(folder / "strategy" / f"{name}.jsonl", lines)


def forget_sentences(folder: Path) -> int:
    """Deletes from a model folder the sentences that strategies keep and all they stored about single sentences.

    Damaged files of strategies are deleted too; other files of the folder do not change.

    Returns:
        The number of deleted sentences.

    Raises:
        ModelError: if `folder` is not a model folder.
    """
    if not (folder / "labels.json").is_file():
        raise ModelError(f"{folder}: is no model folder (it has no labels.json); name one, such as runs/x/steps/02")
    recover_folders(folder)  # a killed process may have left a folder with the sentences set aside
    kept = folder / "strategy"
    if not kept.is_dir():
        return 0
    lines = [line for path in kept.glob("*.jsonl") for line in path.read_bytes().splitlines() if line.strip()]

    def write(draft: Path) -> None:
        for path in kept.glob("*.safetensors"):
            try:
                state = read_tensors(path)
            except ModelError:
                continue  # useless, and may hold what is to be forgotten
            if rest := {key: tensor for key, tensor in state.items() if not key.startswith(SENTENCE_PREFIX)}:
                safetensors.torch.save_file(rest, draft / path.name, _about(path.stem, folder))

    publish_folder(kept, write)
    if not any(kept.iterdir()):
        kept.rmdir()
    return len(lines)


def _about(name: str, folder: Path) -> dict[str, str]:
    """What the file of a strategy's tensors says of itself; in one entry, as the order of several is arbitrary."""
    about = {"strategy": name, "format_version": STATE_VERSION, "types": _types_in(folder)}
    return {"ner_cl": json.dumps(about, ensure_ascii=False)}


def _read_state(path: Path) -> dict[str, Tensor]:
    """Reads a strategy's tensors; ModelError if another strategy or a later version wrote them."""
    tensors = dict(sorted(read_tensors(path).items()))  # a file orders them by number format first
    with safetensors.safe_open(path, framework="pt") as file:
        written = (file.metadata() or {}).get("ner_cl")
    if written is None:  # before versions were written
        return tensors
    try:
        name, version, types = (json.loads(written)[key] for key in ("strategy", "format_version", "types"))
    except (ValueError, TypeError, LookupError) as error:
        what = f"damaged (its metadata say {written[:40]!r})"
        raise ModelError(f"{path}: {what}; restore the file, or delete it") from error
    if name != path.stem:
        raise ModelError(f"{path}: was written by the strategy {name}; restore the file, or delete it")
    if version != STATE_VERSION:
        raise ModelError(f"{path}: format version {version} is not {STATE_VERSION}; update ner_cl")
    if types != _types_in(path.parents[1]):
        raise ModelError(f"{path}: was written with a model of {', '.join(types)}; restore the file, or delete it")
    return tensors


def _types_in(folder: Path) -> list[str]:
    """The types that a model folder names."""
    return list(json.loads((folder / "labels.json").read_text(encoding="utf-8"))["types"])


def read_tensors(path: Path, *, in_place: bool = False) -> dict[str, Tensor]:
    """Reads the tensors of a safetensors file.

    Args:
        path: the file.
        in_place: do not clone the loaded tensors, for callers that copy them. They may be unaligned, and products of
            unaligned matrices differ in their last bits.

    Raises:
        ModelError: if the file is missing or damaged.
    """
    try:
        found = safetensors.torch.load_file(path)
        return found if in_place else {name: tensor.clone() for name, tensor in found.items()}
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; the model folder is incomplete") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path}: damaged ({first_line(error)})") from error


def _read_sentences(path: Path) -> tuple[Sentence, ...]:
    """Reads the sentences of a file; a user may have deleted any of its lines, or all of them."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file; the model folder was changed after it was loaded")
    if not path.read_bytes().strip():
        return ()
    return tuple(read_sentences(path, format="jsonl", explicit_types=True, on_overlap="keep"))


def sha256_of(tensors: Mapping[str, Tensor], *, start: bytes = b"") -> bytes:
    """Hashes `start`, then names and bytes of tensors in the order of their names."""
    digest = hashlib.sha256(start)
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.digest()
