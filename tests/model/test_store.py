"""The model folder: whole or not at all, the same after a round trip, refused in one line when it is not right."""

import ast
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ner_cl.config import HeadOptions
from ner_cl.errors import ModelError
from ner_cl.files import publish_folder, recover_folders
from ner_cl.model.ner_model import NerModel
from ner_cl.model.store import FORMAT_VERSION, load_model, save_model
from tests.tiny import tiny_encoder, tiny_model

EVERY = pytest.mark.parametrize("head", ["addner", "extendner", "spankl"])
STEPS = [["PER"], ["LOC", "ORG-GOV"], ["Größe/日本"]]
FILES = {
    "README.md",
    "config.json",
    "history.jsonl",
    "labels.json",
    "metrics.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
TEXTS = ["Ada Smith visited Rome .", "", "the Acme Bank in 東京 said 12 %"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def full_model(encoder: Path, head: str | HeadOptions) -> NerModel:
    """A model with something in every part of its folder, and decided opinions."""
    model = tiny_model(encoder, head, steps=STEPS, max_pieces=32, window_overlap=8)
    with torch.no_grad():
        for block in model.head.blocks:
            block.weight.mul_(60)
    model.history = [
        {"step": 1, "types": ["PER"], "sentences": 12, "f1_after": {"PER": 0.5}},
        {"step": 2, "types": ["LOC", "ORG-GOV"], "sentences": 9, "f1_after": {"PER": 0.4, "LOC": None, "ORG-GOV": 1.0}},
        {"step": 3, "types": ["Größe/日本"], "sentences": 3},
    ]
    model.metrics = {"counts": {"PER": {"tp": 1, "fp": 0, "fn": 2}}}
    model.strategy_state = {
        "spg": {"encoder.weight": torch.rand(3, 4), "steps": torch.tensor(2)},
        "ewc": {"fisher": torch.tensor([0.5, torch.inf])},
    }
    return model


@pytest.fixture(scope="module")
def saved(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    full_model(encoder, "extendner").save(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A model folder to damage."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- the round trip


@EVERY
def test_save_load_save_is_byte_equal(encoder: Path, tmp_path: Path, head: str) -> None:
    chosen: dict[str, dict[str, Any]] = {
        "addner": {"continuation": "compare"},
        "extendner": {"new_rows": "outside"},
        "spankl": {"width": 6, "max_words": 9},
    }
    full_model(encoder, HeadOptions(name=head, **chosen[head])).save(tmp_path / "one")
    load_model(tmp_path / "one").save(tmp_path / "two")
    load_model(str(tmp_path / "two")).save(str(tmp_path / "three"))
    first = contents(tmp_path / "one")
    assert contents(tmp_path / "two") == first
    assert contents(tmp_path / "three") == first
    assert set(first) == FILES | {"strategy/spg.safetensors", "strategy/ewc.safetensors"}


@EVERY
def test_what_was_saved_comes_back(encoder: Path, tmp_path: Path, head: str) -> None:
    model = full_model(encoder, head)
    model.train()
    model.save(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.tagset == model.tagset
    assert loaded.encoder.options == model.encoder.options
    assert loaded.head.options == model.head.options
    assert (loaded.history, loaded.metrics) == (model.history, model.metrics)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert loaded.strategy_state.keys() == model.strategy_state.keys()
    for name, state in model.strategy_state.items():
        assert all(torch.equal(loaded.strategy_state[name][key], tensor) for key, tensor in state.items())
    assert not loaded.training
    predicted = list(loaded.predict(TEXTS, precision="fp32"))
    assert predicted == list(model.predict(TEXTS, precision="fp32"))
    assert any(predicted)


def test_loading_draws_nothing(saved: Path) -> None:
    """All weights are read, so the caller's random numbers stay as they were, and no time is spent on others."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_model(saved)
    assert torch.equal(torch.rand(3), expected)


@EVERY
def test_a_loaded_model_can_go_on_growing(encoder: Path, tmp_path: Path, head: str) -> None:
    full_model(encoder, head).save(tmp_path / "a")
    model = load_model(tmp_path / "a")
    old_columns = model.state_dict()["head.blocks.2.weight"]
    model.grow(["DATE"], generator=torch.Generator().manual_seed(0))
    model.save(tmp_path / "b")
    loaded = load_model(tmp_path / "b")
    assert loaded.tagset.steps == (*full_model(encoder, head).tagset.steps, ("DATE",))
    assert torch.equal(loaded.state_dict()["head.blocks.2.weight"], old_columns)


def test_a_model_without_types_survives(encoder: Path, tmp_path: Path) -> None:
    tiny_model(encoder).save(tmp_path / "empty")
    loaded = load_model(tmp_path / "empty")
    assert (loaded.types, loaded.history, loaded.metrics, loaded.strategy_state) == ((), [], {}, {})


def test_a_folder_that_moved_needs_nothing_from_where_it_was_made(tmp_path: Path) -> None:
    encoder = tiny_encoder(tmp_path / "encoder")
    tiny_model(encoder, steps=[["PER"]]).save(tmp_path / "made")
    (tmp_path / "made").rename(tmp_path / "moved")
    shutil.rmtree(encoder)
    assert load_model(tmp_path / "moved").types == ("PER",)


def test_the_files_say_what_the_contract_says(saved: Path) -> None:
    labels = json.loads((saved / "labels.json").read_text("utf-8"))
    assert labels["types"] == ["PER", "LOC", "ORG-GOV", "Größe/日本"]
    assert labels["step"] == {"PER": 1, "LOC": 2, "ORG-GOV": 2, "Größe/日本": 3}
    assert labels["tags"][:3] == ["O", "B-PER", "I-PER"]
    config = json.loads((saved / "config.json").read_text("utf-8"))
    assert config["model_type"] == "bert"
    assert config["ner_cl"]["format_version"] == FORMAT_VERSION
    assert "_name_or_path" not in config
    assert len((saved / "history.jsonl").read_text("utf-8").splitlines()) == 3
    assert "日本" in (saved / "labels.json").read_text("utf-8")  # readable, not escaped


def test_the_card_shows_every_type_by_step(saved: Path) -> None:
    card = (saved / "README.md").read_text("utf-8")
    assert card.startswith("---\nlibrary_name: ner_cl\n")
    assert "| 2 | LOC, ORG-GOV | 9 |" in card
    assert "| PER | 50.0 | 40.0 |" in card
    assert "| LOC |  |  |" in card


def test_weights_of_any_device_and_layout_are_saved(encoder: Path, tmp_path: Path) -> None:
    model = full_model(encoder, "extendner")
    model.strategy_state = {"x": {"view": torch.arange(6.0).reshape(2, 3).T, "grad": torch.ones(2, requires_grad=True)}}
    model.save(tmp_path / "m")
    state = load_model(tmp_path / "m").strategy_state["x"]
    assert torch.equal(state["view"], torch.arange(6.0).reshape(2, 3).T)
    assert torch.equal(state["grad"], torch.ones(2))


# --- folders that are not right


GONE = object()
Damage = Callable[[Path], None]


def put(name: str, key: str, value: object) -> Damage:
    """Sets `a.b` of a JSON file, or takes it out if the value is GONE."""

    def damage(folder: Path) -> None:
        values = section = json.loads((folder / name).read_text("utf-8"))
        *path, last = key.split(".")
        for part in path:
            section = section[part]
        section[last] = value
        if value is GONE:
            del section[last]
        (folder / name).write_text(json.dumps(values), "utf-8")

    return damage


def overwrite(name: str, content: bytes) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return damage


def cut(name: str) -> Damage:
    return lambda folder: overwrite(name, (folder / name).read_bytes()[:-100])(folder)


def remove(*names: str) -> Damage:
    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


CONFIG, LABELS, WEIGHTS = "config.json", "labels.json", "model.safetensors"
DAMAGES: list[tuple[Damage, str]] = [
    (remove(CONFIG), r"config\.json: no such file"),
    (remove(LABELS), r"labels\.json: no such file; the model folder is incomplete, copy the whole of it again"),
    (remove(WEIGHTS), r"model\.safetensors: no such file; the model folder is incomplete"),
    (remove("metrics.json"), r"metrics\.json: no such file; the model folder is incomplete"),
    (remove("tokenizer.json"), r"tokenizer\.json: no such file; the model folder is incomplete"),
    (remove("tokenizer_config.json"), r"tokenizer_config\.json: no such file; the model folder is incomplete"),
    (cut(WEIGHTS), r"model\.safetensors: damaged"),
    (overwrite(WEIGHTS, b""), r"model\.safetensors: damaged"),
    (overwrite(WEIGHTS, b"\x80\x04\x95" + b"x" * 500), r"model\.safetensors: damaged"),  # the start of a pickle
    (cut(CONFIG), r"config\.json: not readable as JSON"),
    (cut("tokenizer.json"), "cannot rebuild the encoder"),
    (overwrite(LABELS, b"\xff\xfe\x00"), r"labels\.json: not readable as JSON"),
    (overwrite(LABELS, b"[1]"), r"labels\.json: expected a JSON object"),
    (put(LABELS, "steps", GONE), r"labels\.json: steps must be a list"),
    (put(LABELS, "steps", "PER"), r"labels\.json: steps must be a list"),
    (put(LABELS, "steps", [[1]]), r"labels\.json: steps must be a list"),
    (put(LABELS, "steps", [["PER"], ["PER"]]), r"labels\.json: type PER was already learned in step 1"),
    (put(LABELS, "steps", [["PER"]]), r"model\.safetensors: of another model than config\.json and labels\.json"),
    (put(CONFIG, "ner_cl", GONE), r"config\.json: has no ner_cl block; this is not a ner_cl model folder"),
    (put(CONFIG, "ner_cl.format_version", 2), "format version 2 is not 1; update ner_cl"),
    (put(CONFIG, "ner_cl.format_version", GONE), "format version None is not 1"),
    (put(CONFIG, "ner_cl.head", GONE), r"config\.json: ner_cl\.head"),
    (put(CONFIG, "ner_cl.encoder", GONE), r"config\.json: ner_cl\.encoder"),
    (put(CONFIG, "ner_cl.head.name", "x"), r"config\.json: ner_cl\.head: name: unknown head 'x'"),
    (put(CONFIG, "hidden_size", 64), r"model\.safetensors: of another model"),
    (put(CONFIG, "model_type", "hal"), "cannot rebuild the encoder"),
    (put(CONFIG, "num_attention_heads", 0), "cannot rebuild the encoder"),
    (overwrite("history.jsonl", b'{"step": 1}\n{'), r"history\.jsonl: not readable as JSON lines"),
    (overwrite("history.jsonl", b'{"step": 1}\n[1]'), r"history\.jsonl: record 2 does not describe a step"),
    (overwrite("history.jsonl", b'{"types": ["PER"]}'), r"history\.jsonl: record 1 does not describe a step"),
    (overwrite("history.jsonl", b'{"step": 1, "f1_after": null}'), r"history\.jsonl: record 1 does not describe"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=[message for _, message in DAMAGES])
def test_a_folder_that_is_not_right_is_refused_in_one_line(copy: Path, damage: Damage, message: str) -> None:
    damage(copy)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(copy)
    assert "\n" not in str(caught.value)
    assert str(copy) in str(caught.value)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path / "file"):
        (tmp_path / "file").write_text("x")
        with pytest.raises(ModelError, match=f"{path}: no such model folder; train one with `ner-cl train`"):
            load_model(path)
    (tmp_path / ".nothing.replaced-7").mkdir()
    with pytest.raises(ModelError, match=r"a save that was killed left the model in .*replaced-7; rename that to"):
        load_model(tmp_path / "nothing")


def test_history_may_be_missing(copy: Path) -> None:
    (copy / "history.jsonl").unlink()
    assert load_model(copy).history == []


# --- writing


def test_saving_replaces_a_model_folder_whole(encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "model"
    full_model(encoder, "extendner").save(folder)
    (folder / "left over.txt").write_text("x")
    tiny_model(encoder, steps=[["DATE"]]).save(folder)
    assert load_model(folder).types == ("DATE",)
    assert set(contents(folder)) == FILES
    assert os.listdir(folder.parent) == ["model"]  # no draft is left


@pytest.mark.parametrize("kind", ["a file", "a folder of something else"])
def test_saving_over_something_else_is_refused(encoder: Path, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "target"
    if kind == "a file":
        target.write_text("precious")
    else:
        target.mkdir()
        (target / "thesis.tex").write_text("precious")
    before = target.read_text() if target.is_file() else contents(target)
    with pytest.raises(ModelError, match="exists and is not a model folder; choose another folder"):
        tiny_model(encoder).save(target)
    assert before == (target.read_text() if target.is_file() else contents(target))


def test_saving_into_an_empty_folder_is_fine(encoder: Path, tmp_path: Path) -> None:
    save_model(tiny_model(encoder, steps=[["PER"]]), tmp_path)
    assert load_model(tmp_path).types == ("PER",)


def test_saving_where_nothing_can_be_written_is_one_line(encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelError, match=r"file/model: cannot be written \(.*\)$"):
        tiny_model(encoder).save(tmp_path / "file" / "model")


class Interrupted(BaseException):
    """Stands for Ctrl-C."""


@pytest.mark.parametrize("error", [OSError("disk full"), Interrupted()])
@pytest.mark.parametrize("exists", [True, False])
def test_a_writer_that_fails_leaves_nothing_half(tmp_path: Path, error: BaseException, exists: bool) -> None:
    folder = tmp_path / "model"
    if exists:
        folder.mkdir()
        (folder / "a.txt").write_text("old")

    def write(draft: Path) -> None:
        (draft / "a.txt").write_text("new")
        raise error

    with pytest.raises(type(error)):
        publish_folder(folder, write)
    assert os.listdir(tmp_path) == (["model"] if exists else [])
    assert contents(tmp_path) == ({"model/a.txt": b"old"} if exists else {})


def test_a_renaming_that_fails_brings_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a.txt").write_text("old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if ".draft-" in self.name:
            raise PermissionError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(PermissionError):
        publish_folder(folder, lambda draft: None)
    assert contents(tmp_path) == {"model/a.txt": b"old"}


def test_readers_never_see_a_folder_in_the_making(tmp_path: Path) -> None:
    folder = tmp_path / "model"

    def write(draft: Path) -> None:
        (draft / "a.txt").write_text("x")
        assert not folder.exists()

    publish_folder(folder, write)
    assert contents(tmp_path) == {"model/a.txt": b"x"}


def test_what_a_killed_process_left_is_put_right(tmp_path: Path) -> None:
    for name in (".one.replaced-77", ".one.draft-77", ".two.replaced-77", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
    recover_folders(tmp_path)
    assert contents(tmp_path) == {"one/a.txt": b".one.replaced-77", "two/a.txt": b"two"}


# --- safety


def test_nothing_is_ever_unpickled(repository: Path) -> None:
    """`torch.load`, `torch.save` and the pickle family appear nowhere in the package."""
    forbidden = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
    found = []
    modules = [path for package in ("ner_cl", "serve") for path in (repository / package).rglob("*.py")]
    for path in sorted(modules):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [(node.module or "").split(".")[0]]
                if node.module == "torch":
                    names += [f"torch.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                names = [f"{node.value.id}.{node.attr}"]
            else:
                continue
            unsafe = forbidden | {"torch.load", "torch.save", "np.load", "numpy.load"}
            found += [f"{path.name}:{node.lineno}: {name}" for name in names if name in unsafe]
    assert found == []
