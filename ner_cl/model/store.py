"""The model folder: safetensors and JSON only, written completely or not at all."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import transformers
from torch.overrides import TorchFunctionMode

from ner_cl.config import EncoderOptions, HeadOptions, validate
from ner_cl.errors import ConfigError, ModelError, first_line
from ner_cl.files import publish_folder, read_json_lines, set_aside, write_json
from ner_cl.model.card import model_card
from ner_cl.model.discriminant import Discriminant
from ner_cl.model.encoder import Encoder
from ner_cl.model.fetch import fetch, is_hub_id
from ner_cl.model.heads.base import Head
from ner_cl.model.kept import kept_in, read_tensors, write_kept
from ner_cl.model.ner_model import NerModel
from ner_cl.model.precision import resolve_device
from ner_cl.model.runtime import GraphOnly, OnnxRuntime
from ner_cl.model.subnetworks.base import SubnetworkOptions, Subnetworks
from ner_cl.model.subnetworks.trunk import ONE_PASS_AT_A_TIME
from ner_cl.registry import heads, subnetworks

__all__ = ["FORMAT_VERSION", "Past", "load_model", "read_past", "save_model"]

FORMAT_VERSION = 1
GRAPH_FILE = "model.onnx"
# Without some of these, `transformers` would build something else and not complain.
REQUIRED_FILES = ("labels.json", "metrics.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, slots=True)
class Past:
    """What a model was taught.

    Attributes:
        steps: the types of each step.
        history: the training record of each step.
    """

    steps: tuple[tuple[str, ...], ...]
    history: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, model: NerModel) -> "Past":
        """That of a model in memory."""
        return cls(model.tagset.steps, tuple(model.history))


def save_model(model: NerModel, folder: Path) -> None:
    """Writes the model folder of docs/reference-files.md, "Model folder".

    Raises:
        ModelError: if the folder cannot be written, or holds something other than a model.
    """
    publish_model(folder, lambda draft: _write(model, draft))


def publish_model(folder: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a model folder that replaces `folder` at once; errors as for `save_model`."""
    if folder.exists() and not (folder / "labels.json").is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"{folder}: exists and is not a model folder; choose another folder")
    try:
        publish_folder(folder, write)
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"{folder}: cannot be written ({getattr(error, 'strerror', None) or error})") from error


def _write(model: NerModel, folder: Path) -> None:
    with ONE_PASS_AT_A_TIME:  # a pass in another thread may have swapped weights
        state = model.state_dict() if model.runtime is None else _measured(model)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(state.items())}
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.encoder.config.to_dict()
    config.pop("_name_or_path", None)
    config["ner_cl"] = {
        "format_version": FORMAT_VERSION,
        "encoder": model.encoder.options.model_dump(),
        "head": model.head.options.model_dump(),
        "temperatures": model.head.temperatures,
    }
    if model.subnetworks is not None:
        config["ner_cl"]["subnetworks"] = {
            "first": model.subnetworks.first,
            "options": model.subnetworks.options.model_dump(),
        }
    if model.discriminant is not None:
        config["ner_cl"]["discriminant"] = model.discriminant.settings()
    if model.runtime is not None:
        (folder / GRAPH_FILE).write_bytes(model.runtime.graph)
        config["ner_cl"]["runtime"] = {"name": "onnx", "int8": model.runtime.int8, "known": model.head.known}
    write_json(folder / "config.json", config)
    tagset = model.tagset
    labels = {
        "types": list(tagset.types),
        "step": {type_: tagset.step_of(type_) for type_ in tagset.types},
        "steps": [list(types) for types in tagset.steps],
        "tags": list(tagset.tags),
    }
    write_json(folder / "labels.json", labels)
    model.encoder.tokenizer.save_pretrained(folder)
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in model.history]
    (folder / "history.jsonl").write_text("".join(lines), encoding="utf-8")
    write_json(folder / "metrics.json", model.metrics)
    (folder / "README.md").write_text(model_card(model), encoding="utf-8")
    write_kept(model.strategy_state, model.kept_sentences, folder)


def _measured(model: NerModel) -> dict[str, torch.Tensor]:
    """Returns what an exported model needs besides its graph: the measured buffers of its head, without weights."""
    return {f"head.{name}": tensor for name, tensor in model.head.named_buffers()}


def load_model(folder: str | Path, *, device: str | torch.device = "cpu", revision: str | None = None) -> NerModel:
    """Reads a model folder; nothing in it is ever unpickled.

    Args:
        folder: written by `NerModel.save`, or `owner/name` on the Hugging Face hub if there is no folder of that name.
        device: where to put the model; `auto` is a GPU if there is one.
        revision: branch, tag or commit of a model on the hub.

    Raises:
        ModelError: if the folder is missing, incomplete, damaged, or of another format version.
    """
    folder, settings = _open(folder, revision)
    for name in REQUIRED_FILES:
        if not (folder / name).is_file():
            raise ModelError(
                f"{folder / name}: no such file; the model folder is incomplete, copy the whole of it again"
            )
    with nullcontext() if "runtime" in settings else _NoRandomWeights():
        model = _build(folder, settings)
    _load_weights(model, folder / "model.safetensors", exported="runtime" in settings)
    if "runtime" in settings:
        model.runtime = _read_graph(folder / GRAPH_FILE, settings["runtime"])
    model.head.temperatures = _temperatures(settings, len(model.tagset.steps), folder)
    model.history = _read_history(folder / "history.jsonl")
    model.metrics = _read_json(folder / "metrics.json")
    model.strategy_state, model.kept_sentences = kept_in(folder)
    return model.to(resolve_device(device)).eval()


def read_past(folder: str | Path) -> Past:
    """Reads what the model in a folder was taught, without its weights; errors as for `load_model`."""
    found, _ = _open(folder, None)
    steps = tuple(tuple(types) for types in _read_steps(found / "labels.json"))
    return Past(steps, tuple(_read_history(found / "history.jsonl")))


def _open(folder: str | Path, revision: str | None) -> tuple[Path, dict[str, Any]]:
    """Finds a model's folder, and reads from its `config.json` what is not the encoder's."""
    if not isinstance(folder, str | PathLike):
        raise ModelError(f"a model is loaded by its folder, not by a value of type {type(folder).__name__}; name one")
    folder = Path(folder)
    if not folder.is_dir() and is_hub_id(folder):
        folder = fetch(folder.as_posix(), revision)
    if not folder.is_dir():
        if aside := set_aside(folder):
            raise ModelError(f"{folder}: a save that was killed left the model in {aside}; rename that to {folder}")
        raise ModelError(f"{folder}: no such model folder; train one with `ner-cl train` or `ner-cl learn`")
    if (folder / "steps").is_dir() and not (folder / "config.json").is_file():
        models = sorted(path.name for path in (folder / "steps").iterdir() if path.is_dir())
        raise ModelError(f"{folder}: is a run; its models are {folder / 'steps'}/{{{','.join(models)}}}")
    if (folder / "config.cfg").is_file() and (found := sorted(folder.glob("*/labels.json"))):
        raise ModelError(
            f"{folder}: is a spaCy pipeline; its model is {' or '.join(str(path.parent) for path in found)}"
        )
    settings = _read_json(folder / "config.json").get("ner_cl")
    if not isinstance(settings, dict):
        raise ModelError(f"{folder / 'config.json'}: has no ner_cl block; this is not a ner_cl model folder")
    if settings.get("format_version") != FORMAT_VERSION:
        raise ModelError(
            f"{folder}: format version {settings.get('format_version')} is not {FORMAT_VERSION}; update ner_cl"
        )
    return folder, settings


class _NoRandomWeights(TorchFunctionMode):
    """Leaves out the drawing of weights that are about to be read: half of the time of loading a model.

    Draws are known by the ends of their names (`normal_`, `kaiming_uniform_` …), for transformers has its own in place
    of those in `torch.nn.init`.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if getattr(func, "__name__", "").endswith(("normal_", "uniform_")):
            return args[0] if args else named["tensor"]
        return func(*args, **named)


def _build(folder: Path, settings: dict[str, Any]) -> NerModel:
    """Builds the model with its architecture and tagset but arbitrary weights."""
    where = f"{folder / 'config.json'}: ner_cl"
    try:
        encoder_options = validate(EncoderOptions, settings.get("encoder"), f"{where}.encoder")
        head_options = validate(HeadOptions, settings.get("head"), f"{where}.head")
    except ConfigError as error:
        raise ModelError(str(error)) from error
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        del config.ner_cl  # ours, not the encoder's
        backbone = (
            GraphOnly(config)
            if "runtime" in settings
            else transformers.AutoModel.from_config(config, dtype=torch.float32)
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, add_prefix_space=True)
        encoder = Encoder(backbone, tokenizer, encoder_options)
    except Exception as error:  # the libraries that read these files raise all kinds of errors
        raise ModelError(f"{folder}: cannot rebuild the encoder ({first_line(error)})") from error
    model = NerModel(encoder, heads[head_options.name](encoder.hidden, head_options))
    isolation = _read_subnetworks(settings.get("subnetworks"), where)
    steps = _read_steps(folder / "labels.json")
    try:
        if "runtime" in settings:
            _grow_exported(model.head, steps, settings["runtime"], where)
            return model
        for number, types in enumerate(steps, start=1):
            if isolation and number == isolation[0]:
                model.isolate(isolation[1])
            model.grow(types)
    except ModelError as error:
        raise ModelError(f"{folder / 'labels.json'}: {error}") from error
    if "discriminant" in settings:
        if model.head.apart or not model.head.tags_words:
            raise ModelError(f"{where}.discriminant: head {model.head.name} has no softmax over all types to correct")
        model.discriminant = Discriminant.from_settings(
            settings["discriminant"], encoder, len(model.tagset), where=where
        )
    return model


def _grow_exported(head: Head, steps: list[list[str]], runtime: Any, where: str) -> None:
    """Adds the blocks of an exported model, with the older types that each knows."""
    names = [type_ for types in steps for type_ in types]
    known: Any = runtime.get("known") if isinstance(runtime, dict) else None
    try:
        covers = [[names[index] for index in row[len(types) :]] for row, types in zip(known, steps, strict=True)]
    except (TypeError, IndexError, ValueError):
        raise ModelError(f"{where}.runtime: known must list the types of each block; export the model again") from None
    for types, older in zip(steps, covers, strict=True):
        head.grow(types, covers=older)


def _read_graph(path: Path, runtime: dict[str, Any]) -> OnnxRuntime:
    try:
        graph = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); export the model again") from error
    return OnnxRuntime(graph, int8=bool(runtime.get("int8")))


def _read_subnetworks(values: Any, where: str) -> tuple[int, SubnetworkOptions] | None:
    """The first step with a sub-network, and the sub-networks' options; None if there are none."""
    if values is None:
        return None
    first = values.get("first") if isinstance(values, dict) else None
    options = values.get("options") if isinstance(values, dict) else None
    if type(first) is not int or first < 1 or not isinstance(options, dict) or not isinstance(options.get("name"), str):
        raise ModelError(f"{where}.subnetworks: must have first, a step from 1, and options with a name")
    try:
        kind: type[Subnetworks] = subnetworks[options["name"]]
        return first, validate(kind.options_class, options, f"{where}.subnetworks")
    except ConfigError as error:
        raise ModelError(f"{where}.subnetworks: cannot be read ({first_line(error)})") from error


def _load_weights(model: NerModel, path: Path, *, exported: bool = False) -> None:
    tensors = read_tensors(path, in_place=True)
    if exported:  # the weights are in the graph
        tensors = {**model.state_dict(), **tensors}
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        what = " ".join(str(error).split("\n")[1].split())[:160]  # the line after "Error(s) in loading"
        raise ModelError(
            f"{path}: of another model than config.json and labels.json ({what}); restore the folder"
        ) from error
    if wrong := [name for name, tensor in tensors.items() if not _finite(tensor)]:
        raise ModelError(f"{path}: damaged ({wrong[0]} is not finite); restore the folder")


def _finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor is finite, by its extremes: a tenth of the time of checking every element."""
    return not tensor.numel() or all(bool(extreme.isfinite()) for extreme in tensor.aminmax())


def _read_steps(path: Path) -> list[list[str]]:
    steps = _read_json(path).get("steps")
    rows: list[Any] = steps if isinstance(steps, list) else [None]
    if not all(isinstance(types, list) and all(isinstance(type_, str) for type_ in types) for types in rows):
        raise ModelError(f"{path}: steps must be a list with the types of each step")
    return rows


def _temperatures(settings: dict[str, Any], steps: int, folder: Path) -> list[float]:
    """One temperature per step; 1 if the folder predates temperatures."""
    found = settings.get("temperatures", [1.0] * steps)
    good = isinstance(found, list) and all(isinstance(value, float) and 0 < value < math.inf for value in found)
    if not good or len(found) != steps:
        where = f"{folder / 'config.json'}: ner_cl.temperatures"
        raise ModelError(f"{where}: must be a list of positive numbers, one for each of the {steps} steps")
    return list(found)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path.absolute()}: no such file; this is not a complete model folder") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path}: expected a JSON object")
    return values


def _read_history(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        records = read_json_lines(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable as JSON lines ({error})") from error
    for number, record in enumerate(records, start=1):
        if not (
            isinstance(record, dict)
            and type(record.get("step")) is int
            and all(isinstance(record.get(key, {}), dict) for key in ("f1_after", "measured"))
        ):
            raise ModelError(f"{path}: record {number} does not describe a step; the file is damaged")
    return records
