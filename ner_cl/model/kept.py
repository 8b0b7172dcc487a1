"""What strategies keep in a model folder for later steps: read when somebody asks, since predicting never does."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, final

import safetensors
import safetensors.torch
from torch import Tensor

from ner_cl.data.readers import read_sentences
from ner_cl.data.writers import write_sentences
from ner_cl.errors import ModelError
from ner_cl.files import publish_folder, recover_folders
from ner_cl.model.ner_model import SENTENCE_PREFIX
from ner_cl.types import Sentence

__all__ = ["FilesByName", "forget_sentences", "kept_in", "read_tensors", "write_kept"]

T = TypeVar("T")


@final
class FilesByName(Mapping[str, T], Generic[T]):
    """The contents of files by their names without ending, each read at the first look-up.

    Args:
        paths: the files.
        read: reads one.
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
        """The names."""
        return iter(self._paths)

    def __len__(self) -> int:
        """How many files there are."""
        return len(self._paths)


def kept_in(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Tensors and sentences that strategies keep in the model folder, by strategy name."""
    kept = folder / "strategy"
    return (
        FilesByName({path.stem: path for path in sorted(kept.glob("*.safetensors"))}, read_tensors),
        FilesByName({path.stem: path for path in sorted(kept.glob("*.jsonl"))}, _read_sentences),
    )


def write_kept(
    states: Mapping[str, Mapping[str, Tensor]], sentences: Mapping[str, Sequence[Sentence]], folder: Path
) -> None:
    """Writes what strategies keep to `strategy/` of a model folder; nothing, where they keep nothing."""
    if states or sentences:
        (folder / "strategy").mkdir()
    for name, state in sorted(states.items()):
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in sorted(state.items())}
        safetensors.torch.save_file(tensors, folder / "strategy" / f"{name}.safetensors")
    for name, lines in sorted(sentences.items()):
        write_sentences(folder / "strategy" / f"{name}.jsonl", lines)


def forget_sentences(folder: Path) -> int:
    """Deletes from a model folder the sentences that strategies keep and all they stored about single sentences.

    Nothing is parsed that is deleted, so damaged files go too; other files of the folder stay as they are.

    Returns:
        How many sentences went.

    Raises:
        ModelError: if it is no model folder.
    """
    if not (folder / "labels.json").is_file():
        raise ModelError(f"{folder}: is no model folder (it has no labels.json); name one, such as runs/x/steps/02")
    recover_folders(folder)  # a process that was killed here may have left the sentences set aside
    kept = folder / "strategy"
    if not kept.is_dir():
        return 0
    lines = [line for path in kept.glob("*.jsonl") for line in path.read_bytes().splitlines() if line.strip()]

    def write(draft: Path) -> None:
        for path in kept.glob("*.safetensors"):
            try:
                state = read_tensors(path)
            except ModelError:
                continue  # it is of no use to anybody, and may hold what is to be forgotten
            if rest := {key: tensor for key, tensor in state.items() if not key.startswith(SENTENCE_PREFIX)}:
                safetensors.torch.save_file(rest, draft / path.name)

    publish_folder(kept, write)
    if not any(kept.iterdir()):
        kept.rmdir()
    return len(lines)


def read_tensors(path: Path, *, in_place: bool = False) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Args:
        path: the file.
        in_place: leave them where they lie in it, for somebody who copies them. There they may lie unaligned, and
            products of unaligned matrices differ in their last bits.

    Raises:
        ModelError: if it is missing or damaged.
    """
    try:
        found = safetensors.torch.load_file(path)
        return found if in_place else {name: tensor.clone() for name, tensor in found.items()}
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; the model folder is incomplete") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path}: damaged ({str(error).splitlines()[0][:160]})") from error


def _read_sentences(path: Path) -> tuple[Sentence, ...]:
    """The sentences of a file whose lines somebody may have deleted, all of them even."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file; the model folder was changed after it was loaded")
    if not path.read_bytes().strip():
        return ()
    return tuple(read_sentences(path, format="jsonl", explicit_types=True, on_overlap="keep"))
