"""The folder of a run: whether it may be written to, who writes to it, and what is left of a run that never began."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from ner_cl.config import Config, validate
from ner_cl.errors import ConfigError
from ner_cl.files import recover_folders, replace_text, sole_writer, write_json
from ner_cl.strategies.build import build_strategies
from ner_cl.train.environment import environment

__all__ = ["all_or_nothing", "check_folder", "check_same_run", "open_folder"]

_CONFIG, _ENVIRONMENT, _EVENTS = "config.resolved.yaml", "env.json", "events.jsonl"

# Possible contents of the folder of a run that was killed before it wrote its configuration.
_FIRST_FILES = {_ENVIRONMENT, _EVENTS, "checkpoints", "predictions", "steps", "tracker"}

_FREE = ("gate", "output", "sweep", "tracker")
"""Sections that do not change what is trained."""

_PATHS = ("train", "dev", "test", "unlabeled")


def check_folder(folder: Path, config: Config, *, resume: bool) -> None:
    """Rejects a folder that holds another run, or holds this one if it is not to be resumed.

    Raises:
        ConfigError: with the reason.
    """
    if (folder / _CONFIG).exists():
        if not resume:
            raise ConfigError(
                f"output: {folder} holds a run already; use --resume to go on with it, or --output for another folder"
            )
        check_same_run(folder, config)
    elif folder.exists() and not (folder.is_dir() and all(_may_be_first(path) for path in folder.iterdir())):
        raise ConfigError(f"output: {folder} exists and is no run folder; use --output for another folder")


def check_same_run(folder: Path, config: Config) -> None:
    """Checks that the run in `folder` was made with this configuration.

    Where the corpus lies is not compared, only what its files are called: a resumed run compares the sentences. The
    encoder may have been moved. The order of strategies does not matter, nor whether one that is added is listed.

    Raises:
        ConfigError: naming the first key that differs.
    """
    resolved = folder / _CONFIG
    found = _identity(_as_of_now(yaml.safe_load(resolved.read_text(encoding="utf-8"))))
    given = _identity(_plain(config))
    if _may_have_moved(found["encoder"]["name"], config.encoder.name):
        given["encoder"]["name"] = found["encoder"]["name"]
    if (difference := _difference(found, given)) is not None:
        key, was, now = difference
        what = f"in which {key} is {was}, not {now}"
        if isinstance(was, Mapping) != isinstance(now, Mapping):
            what = f"{'with' if isinstance(was, Mapping) else 'without'} {key}"
        raise ConfigError(
            f"{resolved}: was written by another configuration, {what}; resume with the same one, or use --output"
        )


@contextmanager
def all_or_nothing(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, and leaves nothing of a run that fails before its first event (no encoder, say)."""
    with sole_writer(folder, "output"):
        was_there, had_begun = folder.exists(), (folder / _CONFIG).exists()
        try:
            yield
        finally:
            if not (folder / _EVENTS).is_file() and not had_begun:
                for name in (_CONFIG, _ENVIRONMENT):
                    (folder / name).unlink(missing_ok=True)
                if not was_there:
                    shutil.rmtree(folder, ignore_errors=True)


def open_folder(folder: Path, config: Config) -> None:
    """Creates the run folder, or cleans up what a killed process left in an existing one."""
    for part in ("steps", "checkpoints"):
        recover_folders(folder / part)
    resolved = folder / _CONFIG
    if resolved.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / _ENVIRONMENT, environment())
    replace_text(resolved, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def _may_be_first(path: Path) -> bool:
    """Whether a run killed before it wrote its configuration may have left this file or folder."""
    return path.name in _FIRST_FILES or path.name.startswith(f".{_CONFIG}.")


def _as_of_now(values: dict[str, Any]) -> dict[str, Any]:
    """Adds defaults for keys that an earlier version did not know, if the values are still valid."""
    try:
        return _plain(validate(Config, values, _CONFIG))
    except ConfigError:
        return values


def _plain(config: Config) -> dict[str, Any]:
    """The values of a configuration, with the strategies that a learner builds from its list."""
    strategies = [strategy.options.model_dump(mode="json") for strategy in build_strategies(config.strategies)]
    return {**config.model_dump(mode="json"), "strategies": strategies}


def _may_have_moved(was: str, now: str) -> bool:
    """Whether an encoder's folder may be the one that a run was begun with, which was moved or named from elsewhere."""
    there = Path(was).is_dir()
    same = Path(was).absolute() == Path(now).absolute() if there else Path(was).name == Path(now).name
    return Path(now).is_dir() and same


def _identity(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that identify a run: those that change what is trained or how it is scored."""
    kept = {key: value for key, value in values.items() if key not in _FREE}
    kept["strategies"] = {options["name"]: options for options in kept["strategies"]}
    kept["training"] = {key: value for key, value in kept["training"].items() if key != "checkpoint_seconds"}
    corpus = kept["stream"]["corpus"]
    names = {key: _names(corpus[key]) for key in _PATHS if corpus.get(key)}
    kept["stream"] = {**kept["stream"], "corpus": {**corpus, **names}}
    return kept


def _names(files: str | Sequence[str]) -> str | list[str]:
    return Path(files).name if isinstance(files, str) else [Path(file).name for file in files]


def _difference(one: Any, other: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """The key path of the first difference, and both values there; None if there is none."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in dict.fromkeys([*one, *other]):
            inner = f"{path}.{key}" if path else str(key)
            if found := _difference(one.get(key), other.get(key), inner):
                return found
        return None
    return None if one == other else (path, one, other)
