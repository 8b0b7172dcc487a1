"""Flags shared by several commands, and how their values are parsed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from ner_cl.cli.console import is_main_process
from ner_cl.errors import ConfigError, ModelError
from ner_cl.files import sole_writer

if TYPE_CHECKING:  # these modules import torch, which `--help` must not wait for
    from ner_cl.config import TrainingOptions

__all__ = [
    "Alignment",
    "Format",
    "Json",
    "MaxDrop",
    "Overlap",
    "Scheme",
    "Settings",
    "Types",
    "beside",
    "integers",
    "model_output",
    "names",
    "parse_yaml",
    "reading_options",
    "training_options",
]

Settings: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a configuration key, such as a.b=c; may be repeated."),
]
MaxDrop: TypeAlias = Annotated[
    float | None,
    typer.Option("--max-drop", min=0.0, max=1.0, help="Fail if F1 (0 to 1) of an old type drops by more than this."),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Types: TypeAlias = Annotated[str | None, typer.Option("--types", metavar="A,B", help="Use only these types.")]
Format: TypeAlias = Annotated[
    str, typer.Option("--format", help="Format of the data: auto, conll, jsonl, docbin or hub.")
]
Scheme: TypeAlias = Annotated[
    str, typer.Option("--scheme", help="Tag scheme of column files: auto, iob1, iob2, bioes or io.")
]
Alignment: TypeAlias = Annotated[
    str, typer.Option("--alignment", help="If a span cuts a word: error, or expand it to whole words.")
]
Overlap: TypeAlias = Annotated[
    str,
    typer.Option(
        "--on-overlap",
        help="If spans overlap: error, keep the longest, or keep all (head spankl; addner across steps).",
    ),
]


def names(text: str | None, flag: str = "--types") -> list[str] | None:
    """Parse `"A, B"` as `["A", "B"]`; None stays None."""
    if text is None:
        return None
    found = [name.strip() for name in text.split(",")]
    if not all(found):
        raise ConfigError(f"{flag} {text!r}: write names with commas between them, such as A,B")
    return found


def integers(text: str | None, flag: str) -> list[int]:
    """Parse `"1,2"` as `[1, 2]`; numbers must be distinct and not negative."""
    values = names(text, flag) or []
    if not all(value.isdecimal() for value in values) or len(set(map(int, values))) < len(values):
        raise ConfigError(f"{flag} {text!r}: write different whole numbers from 0 upward, such as 1,2,3")
    return [int(value) for value in values]


def parse_yaml(text: str, flag: str) -> Any:
    """Parse a value written in YAML or JSON."""
    import yaml

    from ner_cl.config.reading import NOT_YAML

    try:
        return yaml.safe_load(text)
    except NOT_YAML:
        raise ConfigError(f"{flag} {text!r}: is not valid YAML; write for instance '[{{name: distill}}]'") from None


@contextmanager
def model_output(folder: Path) -> Iterator[None]:
    """Check before any work is done that a model can be saved in a folder, and reserve it until it is.

    Raises:
        ConfigError: if another process is about to save one there.
        ModelError: if the folder is in use or cannot be written.
    """
    place = Path(os.path.realpath(folder))  # as `new/../model` is there before `new` is
    if place.is_symlink():
        raise ModelError(f"--output {folder}: is a link that leads nowhere; choose another folder")
    parent = next(parent for parent in place.parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ModelError(f"--output {folder}: nothing can be written in {parent}; choose another folder")
    # Processes that train together save one model.
    alone = sole_writer(place, "--output", advice="choose another folder") if is_main_process() else nullcontext()
    with alone:
        if (place / "labels.json").is_file():
            raise ModelError(
                f"--output {folder}: holds a model already; choose another folder, or delete that one first"
            )
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise ModelError(f"--output {folder}: exists and is not empty; choose another folder")
        yield


def beside(model: Path, suffix: str) -> Path:
    """Return the default output folder: next to a model folder, or here for a model of the Hugging Face hub."""
    home = model.absolute().parent if model.is_dir() else Path.cwd()
    return home / f"{model.absolute().name}{suffix}"


def reading_options(data: str | None, flag: str, **options: str) -> dict[str, Any]:
    """Return the options for reading the data of a flag; ConfigError if some are chosen and the data are not given."""
    chosen = [f"--{name.replace('_', '-')}" for name, value in options.items() if value not in ("auto", "error")]
    if data is None and chosen:
        raise ConfigError(f"{' and '.join(chosen)}: nothing is read; give {flag} too")
    return options


def training_options(settings: list[str]) -> "TrainingOptions":
    """Return the training options set with `--set training.…`."""
    from ner_cl.config import TrainingOptions, assign, validate

    values: dict[str, Any] = {}
    for setting in settings:
        if not setting.startswith("training."):
            raise ConfigError(f"--set {setting}: only keys under training can be set here, such as training.epochs=5")
        key, separator, text = setting.partition("=")
        if not separator:
            raise ConfigError(f"--set {setting}: write it as training.key=value")
        assign(values, key.strip().split(".")[1:], text, f"--set {setting}")
    return validate(TrainingOptions, values, "training")
