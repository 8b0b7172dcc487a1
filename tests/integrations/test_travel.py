"""The component on disk, as bytes, pickled, copied, in other processes and in several threads."""

import copy
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import spacy
import srsly
import torch
from spacy.lang.en import English
from spacy.language import Language

from ner_cl.errors import ModelError
from ner_cl.integrations.spacy_component import NerComponent
from ner_cl.model.store import load_model
from tests.integrations.conftest import entities

Build = Callable[..., Language]
# Python 3.12 warns whenever a process with threads forks; that this works is what is tested.
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture
def expected(pipeline: Build, texts: list[str]) -> list[object]:
    return [entities(doc) for doc in pipeline().pipe(texts)]


def found(nlp: Language, texts: list[str]) -> list[object]:
    return [entities(doc) for doc in nlp.pipe(texts)]


@pytest.mark.parametrize("used", [False, True])
def test_disk_round_trip(
    tmp_path: Path, pipeline: Build, model_folder: Path, texts: list[str], expected: list[object], used: bool
) -> None:
    borrowed = shutil.copytree(model_folder, tmp_path / "model")
    nlp = pipeline(model=str(borrowed), thresholds={"PER": 0.1})
    if used:
        found(nlp, texts)
    nlp.to_disk(tmp_path / "pipeline")
    shutil.rmtree(borrowed)  # the pipeline carries its weights, so nothing else is needed
    again = spacy.load(tmp_path / "pipeline")
    assert again.config["components"]["ner_cl"]["thresholds"] == {"PER": 0.1}
    assert again.pipe_labels == {"ner_cl": ["PER", "LOC"]}
    assert found(again, texts) == expected


def test_the_saved_folder_is_the_model_folder(tmp_path: Path, pipeline: Build, model_folder: Path) -> None:
    pipeline().to_disk(tmp_path / "pipeline")
    names = {path.name for path in model_folder.iterdir()}
    assert {path.name for path in (tmp_path / "pipeline" / "ner_cl").iterdir()} == names
    for name in names:
        assert (tmp_path / "pipeline" / "ner_cl" / name).read_bytes() == (model_folder / name).read_bytes()
    assert load_model(tmp_path / "pipeline" / "ner_cl").types == ("PER", "LOC")


def test_what_strategies_keep_goes_along(tmp_path: Path, pipeline: Build, model_folder: Path) -> None:
    model = load_model(model_folder)
    model.strategy_state = {"mine": {"importance": torch.arange(3)}}
    model.save(tmp_path / "model")
    nlp = pipeline(model=str(tmp_path / "model"))
    nlp.to_disk(tmp_path / "pipeline")
    state = load_model(tmp_path / "pipeline" / "ner_cl").strategy_state
    assert state["mine"]["importance"].tolist() == [0, 1, 2]
    copied = pipeline().from_bytes(nlp.to_bytes()).get_pipe("ner_cl").load().strategy_state
    assert copied["mine"]["importance"].tolist() == [0, 1, 2]


def test_saving_over_the_folder_it_came_from(tmp_path: Path, pipeline: Build, texts: list[str]) -> None:
    pipeline().to_disk(tmp_path / "pipeline")
    nlp = spacy.load(tmp_path / "pipeline")
    expected = found(nlp, texts)
    nlp.to_disk(tmp_path / "pipeline")
    pipeline().to_disk(tmp_path / "pipeline")
    assert found(spacy.load(tmp_path / "pipeline"), texts) == expected


@pytest.mark.parametrize("change", ["replaced", "deleted"])
def test_no_other_model_than_the_loaded_one_is_read(
    change: str, tmp_path: Path, pipeline: Build, model_folder: Path, texts: list[str], expected: list[object]
) -> None:
    pipeline().to_disk(tmp_path / "pipeline")
    lazy, read = spacy.load(tmp_path / "pipeline"), spacy.load(tmp_path / "pipeline")
    read.get_pipe("ner_cl").load()
    if change == "replaced":
        other = load_model(model_folder)
        other.grow(["NEW"])
        other.save(tmp_path / "pipeline" / "ner_cl")
    else:
        shutil.rmtree(tmp_path / "pipeline")
    for use in (lambda: lazy("met Ada"), lambda: lazy.to_disk(tmp_path / "copy"), lambda: pickle.dumps(lazy)):
        with pytest.raises(ModelError, match="was deleted or replaced after the pipeline was loaded"):
            use()
    assert found(read, texts) == expected


@pytest.mark.parametrize("name", ["config.json", "metrics.json", "model.safetensors"])
def test_a_pipeline_that_lacks_a_file_of_its_model_is_not_loaded(name: str, tmp_path: Path, pipeline: Build) -> None:
    pipeline().to_disk(tmp_path / "pipeline")
    (tmp_path / "pipeline" / "ner_cl" / name).unlink()
    with pytest.raises(ModelError, match=f"lacks {name}; save the pipeline again"):
        spacy.load(tmp_path / "pipeline")


@pytest.mark.parametrize("saved", ["at first", "again"])
def test_the_model_can_be_changed_at_load(saved: str, tmp_path: Path, pipeline: Build, model_folder: Path) -> None:
    other = load_model(model_folder)
    other.grow(["NEW"])
    other.save(tmp_path / "other")
    pipeline().to_disk(tmp_path / "pipeline")
    nlp = spacy.load(tmp_path / "pipeline")
    assert nlp.config["components"]["ner_cl"]["model"] is None
    if saved == "again":
        nlp.to_disk(tmp_path / "pipeline")
    override = {"components.ner_cl.model": str(tmp_path / "other")}
    changed = spacy.load(tmp_path / "pipeline", config=override)
    assert changed.config["components"]["ner_cl"]["model"] == str(tmp_path / "other")
    assert changed.get_pipe("ner_cl").labels == ("PER", "LOC", "NEW")
    changed.to_disk(tmp_path / "changed")
    shutil.rmtree(tmp_path / "other")
    assert spacy.load(tmp_path / "changed").get_pipe("ner_cl").load().types == ("PER", "LOC", "NEW")


def test_a_folder_given_to_the_component_itself_is_used(tmp_path: Path, pipeline: Build, model_folder: Path) -> None:
    other = load_model(model_folder)
    other.grow(["NEW"])
    other.save(tmp_path / "other")
    pipeline(model=str(tmp_path / "other")).to_disk(tmp_path / "pipeline")
    component = pipeline().get_pipe("ner_cl").from_disk(tmp_path / "pipeline" / "ner_cl")
    assert component.labels == ("PER", "LOC", "NEW")


def test_a_config_does_not_name_a_model_that_is_no_longer_used(pipeline: Build, model_folder: Path) -> None:
    nlp = pipeline()
    nlp.rename_pipe("ner_cl", "renamed")
    assert English.from_config(nlp.config).get_pipe("renamed").labels == ("PER", "LOC")
    other = load_model(model_folder)
    other.grow(["NEW"])
    nlp.get_pipe("renamed").use(other)
    with pytest.raises(ModelError, match="the component has no model"):
        English.from_config(nlp.config)("met Ada")


@pytest.mark.parametrize("used", [False, True])
def test_bytes_round_trip(pipeline: Build, texts: list[str], expected: list[object], used: bool) -> None:
    nlp = pipeline()
    if used:
        found(nlp, texts)
    data = nlp.to_bytes()
    again = spacy.blank("en")
    again.add_pipe("ner_cl", config={"precision": "fp32"})
    again.from_bytes(data)
    assert again.pipe_labels == {"ner_cl": ["PER", "LOC"]}
    assert again.get_pipe("ner_cl").to_bytes() == nlp.get_pipe("ner_cl").to_bytes()
    assert found(again, texts) == expected
    assert again.get_pipe("ner_cl").to_bytes() == nlp.get_pipe("ner_cl").to_bytes()  # saved anew from memory


@pytest.mark.parametrize("data", [b"", b"nonsense", srsly.msgpack_dumps({"model": 1}), srsly.msgpack_dumps([1])])
def test_foreign_bytes_are_refused(pipeline: Build, data: bytes) -> None:
    with pytest.raises(ModelError, match="not of a ner_cl component"):
        pipeline().get_pipe("ner_cl").from_bytes(data)


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "strategy/../../outside", "a/b", "..", "strategy/.."])
def test_bytes_cannot_write_outside_the_model(tmp_path: Path, pipeline: Build, name: str) -> None:
    component = pipeline().get_pipe("ner_cl")
    with pytest.raises(ModelError, match="a model holds no file"):
        component.from_bytes(srsly.msgpack_dumps({"files": {"labels.json": b"{}", name: b"x"}}))
    assert component.labels == ("PER", "LOC")  # the component keeps its model


@pytest.mark.parametrize("files", [None, [1], {"labels.json": "x"}, {1: b"x"}, {}, {"config.json": b"{}"}])
def test_bytes_without_the_files_of_a_model_are_refused(pipeline: Build, files: object) -> None:
    component = pipeline().get_pipe("ner_cl")
    with pytest.raises(ModelError, match=r"these bytes hold no .*; make them with to_bytes"):
        component.from_bytes(srsly.msgpack_dumps({"files": files}))
    assert component.labels == ("PER", "LOC")


@pytest.mark.parametrize("used", [False, True])
def test_a_file_in_the_way_is_kept(tmp_path: Path, pipeline: Build, used: bool) -> None:
    (tmp_path / "mine.txt").write_text("dear")
    component = pipeline().get_pipe("ner_cl")
    if used:
        component.use(component.load())
    with pytest.raises(ModelError, match="exists and is not a model folder"):
        component.to_disk(tmp_path / "mine.txt")
    with pytest.raises(ModelError, match="cannot be written"):
        component.to_disk(tmp_path / "mine.txt" / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert (tmp_path / "mine.txt").read_text() == "dear"


def test_a_folder_that_is_none_of_ours_is_left_alone(tmp_path: Path, pipeline: Build) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    nlp = pipeline()
    with pytest.raises(ModelError, match="is not a model folder"):
        nlp.get_pipe("ner_cl").to_disk(tmp_path)
    with pytest.raises(ModelError, match="holds no model"):
        nlp.get_pipe("ner_cl").from_disk(tmp_path)
    with pytest.raises(ModelError, match="no such model folder"):
        pipeline(model=str(tmp_path / "none")).to_disk(tmp_path / "pipeline")


def test_pickles_are_a_path_until_the_model_lives_nowhere_else(pipeline: Build, texts: list[str]) -> None:
    nlp = pipeline()
    expected = found(nlp, texts)
    assert len(pickle.dumps(nlp.get_pipe("ner_cl"))) < 3000
    assert found(pickle.loads(pickle.dumps(nlp)), texts) == expected
    assert found(copy.deepcopy(nlp), texts) == expected
    in_memory = spacy.blank("en")
    in_memory.add_pipe("ner_cl", config={"precision": "fp32"})
    in_memory.from_bytes(nlp.to_bytes())
    assert len(pickle.dumps(in_memory.get_pipe("ner_cl"))) > 10_000
    assert found(pickle.loads(pickle.dumps(in_memory)), texts) == expected
    empty: NerComponent = pickle.loads(pickle.dumps(pipeline(model=None).get_pipe("ner_cl")))
    assert empty.labels == ()


def test_weights_are_read_once_and_only_when_needed(
    pipeline: Build, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    monkeypatch.setattr("ner_cl.model.store.load_model", lambda folder: reads.append(1) or load_model(folder))
    nlp = pipeline()
    assert (nlp.meta["labels"], reads) == ({"ner_cl": ["PER", "LOC"]}, [])
    found(nlp, texts)
    found(nlp, texts)
    assert reads == [1]


def test_a_relative_path_outlives_a_change_of_folder(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model_folder.parent)
    nlp = spacy.blank("en")
    nlp.add_pipe("ner_cl", config={"model": model_folder.name})
    monkeypatch.chdir(tmp_path)
    assert nlp("met Ada in Oslo").ents


@forks
@pytest.mark.parametrize("used", [False, True])
def test_two_processes_are_one(pipeline: Build, texts: list[str], expected: list[object], used: bool) -> None:
    nlp = pipeline()
    if used:
        found(nlp, texts)  # torch has computed in this process before it forks
    both = list(nlp.pipe(((text, number) for number, text in enumerate(texts)), as_tuples=True, n_process=2))
    assert [entities(doc) for doc, _ in both] == expected
    assert [number for _, number in both] == list(range(len(texts)))
    assert all(doc.spans["ner_cl"].attrs["scores"] == [e._.score for e in doc.ents] for doc, _ in both)


def _threads_after(component: NerComponent, text: str, results: "multiprocessing.Queue[tuple[int, int]]") -> None:
    doc = component(spacy.blank("en").make_doc(text))
    results.put((torch.get_num_threads(), len(doc.ents)))


@forks
def test_a_fork_while_the_lock_is_held_does_not_hang(pipeline: Build) -> None:
    component = pipeline().get_pipe("ner_cl")
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with component._source.borrow():
            worker = context.Process(target=_threads_after, args=(component, "met Ada in Oslo", results))
            worker.start()
            threads, entities_found = results.get(timeout=120)
            worker.join(30)
        assert (threads, entities_found, worker.exitcode) == (1, 2, 0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_threads_share_one_model(pipeline: Build, texts: list[str], expected: list[object]) -> None:
    nlp = pipeline()
    component = nlp.get_pipe("ner_cl")
    with ThreadPoolExecutor(4) as pool:
        docs = list(pool.map(component, [nlp.make_doc(text) for text in texts]))
    assert [entities(doc) for doc in docs] == expected


def test_no_network_is_asked_for(
    tmp_path: Path, pipeline: Build, texts: list[str], expected: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("the network was asked")

    pipeline().to_disk(tmp_path / "pipeline")
    monkeypatch.setattr("socket.socket.connect", refuse)
    assert found(spacy.load(tmp_path / "pipeline"), texts) == expected
    assert os.environ.get("HF_HUB_OFFLINE") is None


@pytest.mark.parametrize("change", ["linked to another", "replaced", "deleted"])
def test_a_model_in_use_travels_though_its_folder_holds_another_by_now(
    change: str, tmp_path: Path, pipeline: Build, model_folder: Path, texts: list[str], expected: list[object]
) -> None:
    shutil.copytree(model_folder, tmp_path / "one")
    other = load_model(model_folder)
    other.grow(["NEW"])
    (tmp_path / "latest").symlink_to(tmp_path / "one")
    nlp = pipeline(model=str(tmp_path / "latest"))
    found(nlp, texts)
    if change == "linked to another":
        other.save(tmp_path / "two")
        (tmp_path / "latest").unlink()
        (tmp_path / "latest").symlink_to(tmp_path / "two")
    elif change == "replaced":
        other.save(tmp_path / "one")
    else:
        shutil.rmtree(tmp_path / "one")
    nlp.to_disk(tmp_path / "pipeline")
    for again in (spacy.load(tmp_path / "pipeline"), pipeline(model=None).from_bytes(nlp.to_bytes())):
        assert again.get_pipe("ner_cl").labels == ("PER", "LOC")
        assert found(again, texts) == expected
    copied = pickle.loads(pickle.dumps(nlp.get_pipe("ner_cl")))
    assert copied.labels == ("PER", "LOC")
