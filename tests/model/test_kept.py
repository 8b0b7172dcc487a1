"""What strategies keep in a model folder: read when asked for, forgotten without being read."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from ner_cl.errors import DataError, ModelError
from ner_cl.model.kept import forget_sentences
from ner_cl.model.store import load_model
from tests.tiny import SENTENCES, tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with sentences, a tensor about one of them, and an importance."""
    model = tiny_model(tmp_path / "encoder", steps=[("PER", "LOC", "ORG", "MISC")])
    model.kept_sentences = {"replay": SENTENCES}
    model.strategy_state = {
        "replay": {"sentence/1": torch.ones(2)},
        "spg": {"weight": torch.arange(3.0)},
        "gem": {"sentence/2": torch.ones(1), "scale": torch.ones(1)},
    }
    model.save(tmp_path / "model")
    return tmp_path / "model"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "strategy").iterdir())


def test_damaged_files_harm_nobody_who_only_predicts(folder: Path) -> None:
    (folder / "strategy" / "spg.safetensors").write_bytes(b"half")
    with (folder / "strategy" / "replay.jsonl").open("a") as file:
        file.write("{broken\n")
    model = load_model(folder)
    assert model.predict("Ada visited Rome .") is not None
    assert len(model.strategy_state) == 3
    with pytest.raises(ModelError, match=r"spg\.safetensors: damaged"):
        model.strategy_state["spg"]
    with pytest.raises(DataError, match=r"replay\.jsonl:5: "):
        model.kept_sentences["replay"]


def test_lines_may_be_deleted_all_of_them_even(folder: Path) -> None:
    path = folder / "strategy" / "replay.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:1]))
    assert [s.words for s in load_model(folder).kept_sentences["replay"]] == [SENTENCES[0].words]
    path.write_text("\n")
    assert load_model(folder).kept_sentences == {"replay": ()}


def test_a_file_that_is_gone_by_the_time_it_is_asked_for(folder: Path) -> None:
    model = load_model(folder)
    (folder / "strategy" / "replay.jsonl").unlink()
    with pytest.raises(ModelError, match="the model folder was changed after it was loaded"):
        model.kept_sentences["replay"]


@pytest.mark.parametrize("damage", [False, True])
def test_forgetting_deletes_sentences_and_what_is_about_them_and_leaves_the_rest(folder: Path, damage: bool) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    if damage:
        (folder / "strategy" / "replay.jsonl").write_text("{broken\n{too\n")
        (folder / "strategy" / "replay.safetensors").write_bytes(b"half")
    assert forget_sentences(folder) == (2 if damage else len(SENTENCES))
    assert names(folder) == ["gem.safetensors", "spg.safetensors"]
    assert safetensors.torch.load_file(folder / "strategy" / "gem.safetensors").keys() == {"scale"}
    assert (folder / "model.safetensors").read_bytes() == weights
    assert forget_sentences(folder) == 0


def test_forgetting_where_nothing_else_is_kept_removes_the_folder(folder: Path) -> None:
    for name in ("spg", "gem"):
        (folder / "strategy" / f"{name}.safetensors").unlink()
    forget_sentences(folder)
    assert not (folder / "strategy").exists()
    assert forget_sentences(folder) == 0


def test_a_copy_takes_neither_history_nor_what_is_kept_along(folder: Path) -> None:
    model = load_model(folder)
    model.history = [{"step": 1}]
    twin = model.copy()
    assert (twin.history, dict(twin.strategy_state), dict(twin.kept_sentences)) == ([], {}, {})
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in twin.state_dict().items())
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in model.parameters()}


def test_a_file_says_whose_it_is_and_of_which_version(folder: Path) -> None:
    kept = folder / "strategy"
    (kept / "spg.safetensors").rename(kept / "das.safetensors")
    with pytest.raises(ModelError, match=r"das\.safetensors: was written by the strategy spg; restore the file, or"):
        load_model(folder).strategy_state["das"]
    forget_sentences(folder)  # writes the file anew
    with safetensors.safe_open(kept / "gem.safetensors", framework="pt") as file:
        told = json.loads(file.metadata()["ner_cl"])
    assert told == {"strategy": "gem", "format_version": 1, "types": ["PER", "LOC", "ORG", "MISC"]}
    for about, said in (
        (json.dumps({**told, "format_version": 2}), "format version 2 is not 1; update ner_cl"),
        (json.dumps({**told, "types": ["PER", "LOC"]}), "was written with a model of PER, LOC; restore the file"),
        (json.dumps({"strategy": "gem"}), r"damaged \(its metadata say .*\); restore the file, or delete it"),
        ("[1]", r"damaged \(its metadata say '\[1\]'\)"),
        ("nonsense", "damaged"),
    ):
        safetensors.torch.save_file({"scale": torch.ones(1)}, kept / "gem.safetensors", {"ner_cl": about})
        with pytest.raises(ModelError, match=rf"gem\.safetensors: {said}"):
            load_model(folder).strategy_state["gem"]
    safetensors.torch.save_file({"scale": torch.ones(1)}, kept / "gem.safetensors")  # as before versions were written
    assert set(load_model(folder).strategy_state["gem"]) == {"scale"}
