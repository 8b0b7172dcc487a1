"""Reads a configuration: file, environment and command line, merged and validated."""

import copy
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ner_cl.config.composition import HeadOptions, default_strategies, or_default
from ner_cl.config.sections import Config, EncoderOptions
from ner_cl.config.validation import validate
from ner_cl.errors import ConfigError

__all__ = ["NOT_YAML", "assign", "assign_all", "find_file", "load_config", "parse_config", "with_values"]

ENVIRONMENT_PREFIX = "NER_CL__"
NOT_YAML = (yaml.YAMLError, TypeError, ValueError)
"""What PyYAML raises for invalid text: a date with month 13 or `{{ }}` gives a built-in Python error."""
_NAMED = ("encoder", "head", "strategies")  # sections that, or whose items, may be a name alone


def load_config(
    path: str | Path, *, overrides: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Config:
    """Reads a YAML configuration.

    Args:
        path: the file.
        overrides: `a.b=value` strings, with the value in YAML; a number in a path indexes a list.
        environment: environment variables, of which `NER_CL__A__B` are used; `os.environ` by default.

    Raises:
        ConfigError: naming file and line, or key path, and what to do.
    """
    path = Path(path)
    values = _read_yaml(path)
    written = copy.deepcopy(values)
    for key, text in sorted((os.environ if environment is None else environment).items()):
        if key.startswith("NER_CL_") and "__" in key and not key.startswith(ENVIRONMENT_PREFIX):
            meant = ENVIRONMENT_PREFIX + key.removeprefix("NER_CL_")
            raise ConfigError(
                f"environment variable {key}: names of keys begin with {ENVIRONMENT_PREFIX}; write {meant}"
            )
        if key.startswith(ENVIRONMENT_PREFIX):
            assign(values, key[len(ENVIRONMENT_PREFIX) :].lower().split("__"), text, f"environment variable {key}")
    assign_all(values, overrides)
    try:
        return parse_config(values, source=str(path), folder=path.parent)
    except ConfigError:
        if values != written and _is_valid(written, path.parent):
            # Not the file is wrong, but what was added to it.
            return parse_config(values, source="--set" if overrides else "environment", folder=path.parent)
        raise


def _is_valid(values: Mapping[str, Any], folder: Path) -> bool:
    try:
        parse_config(values, folder=folder)
    except ConfigError:
        return False
    return True


def parse_config(values: Mapping[str, Any], *, source: str = "config", folder: Path = Path()) -> Config:
    """Builds a validated configuration from plain values, merging in a stream file.

    Paths of corpus files and of an encoder's folder are looked up (see `find_file`) and made absolute, so that the
    configuration means the same wherever it is read again.

    Raises:
        ConfigError: naming the key path and what to do.
    """
    merged = dict(values)
    stream = merged.get("stream")
    if isinstance(stream, Mapping):
        merged["stream"] = _resolve_stream(dict(stream), folder, source)
    match merged.get("encoder"):
        case str(name) | {"name": str(name)} if found := _encoder_folder(name, folder):
            options = merged["encoder"]
            merged["encoder"] = {**(options if isinstance(options, Mapping) else {}), "name": found}
    return validate(Config, merged, source)


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """Returns a copy of the configuration with new values at some key paths.

    Raises:
        ConfigError: if a path does not exist or a value is invalid.
    """
    plain = config.model_dump(mode="json")
    if config.encoder.overlaps_by_default:  # and will with another `max_pieces`
        del plain["encoder"]["window_overlap"]
    if tuple(config.strategies) == tuple(or_default((), config.head)):
        plain["strategies"] = []  # the default, which may be another with the values
    for key in sorted(values, key=_into_strategies):
        _put(plain, key.split("."), values[key], key)
    return validate(Config, plain, "config")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turns nested values into values by key path, such as `training.epochs`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        flat.update(flatten(value, f"{path}.") if isinstance(value, Mapping) else {path: value})
    return flat


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; `ner-cl init` writes one to start from") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    except NOT_YAML as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of keys; this file holds {type(values).__name__}")
    return values


class _StrictLoader(yaml.SafeLoader):
    """Rejects a duplicate key in a mapping, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} stands twice; keep one", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def assign(values: dict[str, Any], keys: Sequence[str], text: str, source: str) -> None:
    """Parses a value written in YAML and sets it at a key path, creating missing sections.

    Raises:
        ConfigError: naming the source, if the path is invalid or the text is not YAML.
    """
    try:
        # YAML 1.1 reads 3e-4 as text; people mean the number.
        value = float(text) if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", text) else yaml.safe_load(text)
    except NOT_YAML as error:
        raise ConfigError(f"{source}: the value is not valid YAML") from error
    _put(values, keys, value, source)


def assign_all(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Sets what `--set` gives, strings of the form `a.b=value`, before values are checked and files looked up.

    Raises:
        ConfigError: naming the string that is not of this form.
    """
    for override in sorted(overrides, key=_into_strategies):
        key, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f"--set {override}: write it as key.path=value")
        assign(values, key.strip().split("."), text, f"--set {override}")


def _into_strategies(key: str) -> bool:
    """Whether a key leads into the list of strategies: to be set last, as the default list depends on the head."""
    return key.strip().startswith("strategies.")


def _put(values: dict[str, Any], keys: Sequence[str], value: Any, source: str) -> None:
    """Sets the value at a key path; missing sections are created, and a name alone becomes a section with that name.

    A path into the strategies of a configuration that lists none leads into the default ones.
    """
    if keys[0] == "strategies" and len(keys) > 1 and not values.get("strategies"):
        head = values.get("head") or {}
        values["strategies"] = default_strategies(validate(HeadOptions, head, f"{source}: head"))
    target: Any = values
    for key in keys[:-1]:
        if isinstance(target, list) and key.isdigit() and int(key) < len(target):
            place: Any = int(key)
        elif isinstance(target, dict):
            place = key
            target.setdefault(key, {})
        else:
            raise ConfigError(f"{source}: {key!r} does not lead to a section")
        if target[place] is None:
            target[place] = {}
        elif isinstance(target[place], str) and keys[0] in _NAMED:
            target[place] = {"name": target[place]}
        target = target[place]
    if isinstance(target, list) and keys[-1].isdigit() and int(keys[-1]) < len(target):
        target[int(keys[-1])] = value
    elif isinstance(target, dict):
        target[keys[-1]] = value
    else:
        raise ConfigError(f"{source}: {keys[-1]!r} does not lead to a value")


def _resolve_stream(stream: dict[str, Any], folder: Path, source: str) -> dict[str, Any]:
    if stream.get("file"):
        pinned = find_file(str(stream["file"]), folder)
        if pinned is None:
            raise ConfigError(f"{source}: stream.file: {stream['file']} does not exist; give the path of a stream file")
        base = _read_yaml(pinned)
        for where, values in ((pinned, base), (f"{source}: stream", stream)):
            if not isinstance(values.get("corpus") or {}, Mapping):
                raise ConfigError(f"{where}: corpus: give a mapping of train, dev and test to files")
        files = {**(base.get("corpus") or {}), **(stream.get("corpus") or {})}
        stream = {**base, **stream, "corpus": files}
        stream.pop("file")
    corpus = stream.get("corpus")
    if isinstance(corpus, Mapping):
        stream["corpus"] = {
            key: _found(value, folder) if key in ("train", "dev", "test", "unlabeled") else value
            for key, value in corpus.items()
        }
    return stream


def _found(value: Any, folder: Path) -> Any:
    """A corpus file, or each of a list, as the absolute path of what exists, where it does."""
    if isinstance(value, list):
        return [_found(item, folder) for item in value]
    found = find_file(value, folder) if isinstance(value, str) else None
    return str(found.absolute()) if found else value


def _encoder_folder(name: str, folder: Path) -> str | None:
    """The absolute path of an encoder's folder of this name; None if there is none, as for an alias or a hub id."""
    if name == EncoderOptions().name:
        return None
    found = find_file(f"{name}/config.json", folder)
    return str(found.parent.absolute()) if found else None


def find_file(name: str, folder: Path) -> Path | None:
    """The first existing path among `$NER_CL_DATA/name`, `folder/name` and `name`; None if none exists.

    It is a file or a folder saved by `datasets`; a trailing `#split` is kept.
    """
    roots = [Path(os.environ["NER_CL_DATA"])] if os.environ.get("NER_CL_DATA") else []
    for root in (*roots, folder, Path()):
        saved = root / name.partition("#")[0]
        candidates = (root / name, saved, saved / "dataset_dict.json", saved / "dataset_info.json")
        if any(path.is_file() for path in candidates):
            return root / name
    return None
