"""`POST /v1/model`: another model at once or not at all, and no path that leads elsewhere."""

import json
import os
import pickle
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ner_cl.errors import ConfigError
from ner_cl_serve import publisher
from ner_cl_serve.served import ServedModel
from ner_cl_serve.settings import Batching
from ner_cl_serve.state import StateFile
from tests.serve.conftest import TEXT, Running
from tests.serve.test_entities import assert_refused
from tests.tiny import tiny_model


@pytest.fixture
def root(model_root: Path, tmp_path: Path) -> Path:
    """A model root that a test may change."""
    return Path(shutil.copytree(model_root, tmp_path / "models"))


def test_another_model_serves_and_the_one_before_comes_back(serving: Callable[..., Running]) -> None:
    running = serving()
    old = running.client.get("/v1/model").json()
    assert old["previous"] is None
    published = running.publish(model="step3")
    assert published.status_code == 200
    changed = published.json()
    assert (changed["replaced"], changed["types_added"], changed["types_removed"]) == (old["model"], ["ORG"], [])
    assert changed["probe"]["types"].keys() == {"PER", "LOC"}
    assert changed["model"].startswith("step3@")
    now = running.client.get("/v1/model").json()
    assert (now["model"], now["previous"]) == (changed["model"], old["model"])
    assert running.find(TEXT).json()["model"] == changed["model"]

    back = running.publish(previous=True).json()
    assert (back["model"], back["types_removed"]) == (old["model"], ["ORG"])
    assert running.find(TEXT).json()["model"] == old["model"]
    assert running.publish(previous=True).json()["model"] == changed["model"]


def test_publishing_what_serves_already_keeps_the_one_before(serving: Callable[..., Running]) -> None:
    running = serving()
    first = running.publish(model="step3").json()
    again = running.publish(model="step3").json()
    assert again["model"] == again["replaced"] == first["model"]
    assert again["probe"]["f1"] == 1.0
    assert running.client.get("/v1/model").json()["previous"] == first["replaced"]


def test_without_a_model_before_there_is_none_to_bring_back(running: Running) -> None:
    assert_refused(running.publish(previous=True), 409, "no_previous_model")


def test_models_that_agree_too_little_are_not_published(serving: Callable[..., Running]) -> None:
    running = serving()
    before = running.client.get("/v1/model").json()["model"]
    message = assert_refused(running.publish(model="step3", min_agreement=1.0), 409, "agreement_too_low")
    assert "less than 1" in message
    assert running.client.get("/v1/model").json()["model"] == before
    assert running.publish(model="step2", min_agreement=1.0).status_code == 200


def test_models_of_which_nothing_can_be_compared_are_not_published(
    serving: Callable[..., Running], tmp_path: Path
) -> None:
    """Neither knows a type of the other, so no agreement can be measured, and none is."""
    for name, type_ in (("ours", "PER"), ("theirs", "DRUG")):
        tiny_model(tmp_path / "encoder", steps=[[type_]]).save(tmp_path / name)
    running = serving(model="ours", model_root=tmp_path)
    message = assert_refused(running.publish(model="theirs", min_agreement=0.1), 409, "nothing_compared")
    assert "--probe" in message
    assert running.client.get("/v1/model").json()["model"].startswith("ours@")
    assert running.publish(model="theirs").json()["probe"]["f1"] is None


# --- what cannot be read


def damage_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])


def drop_labels_content(folder: Path) -> None:
    (folder / "labels.json").write_text("{}")


def know_no_type(folder: Path) -> None:
    labels = json.loads((folder / "labels.json").read_text())
    (folder / "labels.json").write_text(json.dumps({**labels, "types": [], "steps": [], "step": {}, "tags": ["O"]}))


def drop_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    (folder / "config.json").write_text("{")


def pickle_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(folder)))


def damage_history(folder: Path) -> None:
    (folder / "history.jsonl").write_text('{"step": 1, "f1_after": {"PER": 1.5}, "sentences": "many"}\n')


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.folder / "exploded",))


@pytest.mark.parametrize(
    "damage",
    [damage_weights, drop_labels_content, know_no_type, drop_tokenizer, pickle_weights, damage_history],
)
def test_a_broken_model_is_refused_and_the_old_one_goes_on(
    serving: Callable[..., Running], root: Path, damage: Callable[[Path], None]
) -> None:
    running = serving(model_root=root)
    before = running.find(TEXT).json()
    damage(root / "step3")
    message = assert_refused(running.publish(model="step3"), 422, "model_refused")
    assert str(root) not in message
    assert running.find(TEXT).json() == before
    assert running.client.get("/v1/model").status_code == 200
    assert not (root / "step3" / "exploded").exists()


def test_a_model_that_changed_since_it_served_is_not_brought_back(serving: Callable[..., Running], root: Path) -> None:
    running = serving(model_root=root)
    assert running.publish(model="step3").status_code == 200
    (root / "step2" / "metrics.json").write_text('{"changed": true}')
    assert_refused(running.publish(previous=True), 409, "model_changed")
    assert running.publish(model="step2").status_code == 200


# --- paths


def test_no_path_leads_out_of_the_model_root(serving: Callable[..., Running], root: Path, tmp_path: Path) -> None:
    outside = Path(shutil.copytree(root / "step3", tmp_path / "outside"))
    (root / "link").symlink_to(outside)
    linked = Path(shutil.copytree(root / "step3", root / "linked"))
    (linked / "model.safetensors").unlink()
    (linked / "model.safetensors").symlink_to(outside / "model.safetensors")
    deep = Path(shutil.copytree(root / "step3", root / "deep")) / "strategy"
    deep.mkdir()
    (deep / "replay.jsonl").symlink_to(outside / "README.md")
    os.mkfifo(shutil.copytree(root / "step3", root / "pipe") / "notes.json")  # whoever opens it waits for ever
    (root / "loop").symlink_to(root / "loop")
    (root / "inside").symlink_to(root / "step3")
    running = serving(model_root=root)
    for name in (
        "../outside",
        str(outside),
        "step3/../../outside",
        "link",
        "linked",
        "deep",
        "pipe",
        "loop",
        "..",
        ".",
        "/",
        "..\\outside",
        "step3/labels.json",
        "x" * 256,
        "nothing",
    ):
        message = assert_refused(running.publish(model=name), 404, "model_not_found")
        assert str(tmp_path) not in message.replace(name[:100], "")
    assert running.publish(model="inside").status_code == 200


@pytest.mark.parametrize(
    "body",
    [{}, {"model": "step3", "previous": True}, {"previous": False}, {"model": ""}, {"model": "a\0b"}, {"model": 1}],
)
def test_what_to_publish_must_be_said_clearly(running: Running, body: dict[str, object]) -> None:
    assert_refused(running.publish(**body), 422, "invalid_request")


# --- while requests go on


def test_swaps_under_load_lose_nothing_and_mix_nothing(serving: Callable[..., Running], tmp_path: Path) -> None:
    """Every answer is whole, and is that of the version it names."""
    (tmp_path / "probe.txt").write_text(TEXT)
    running = serving(probe=tmp_path / "probe.txt", batching=Batching(batch_tokens=64))
    texts = [TEXT, f"{TEXT} " * 8, "Umbra met Carla Jones near Quito Harbour ."]  # the second one is a long one
    truth = {}
    for step in ("step2", "step3", "step2"):
        answer = (running.publish(model=step), running.find(*texts))[1].json()
        truth[answer["model"]] = answer["documents"]
    assert len({json.dumps(found) for found in truth.values()}) == 2  # or nothing could be mixed up
    done = threading.Event()
    wrong: list[object] = []
    answered: list[str] = []

    def ask() -> None:
        while not done.is_set():
            response = running.find(*texts)
            answer = response.json()
            answered.append(answer.get("model", ""))
            if response.status_code != 200 or answer["documents"] != truth[answer["model"]]:
                wrong.append(answer)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(30):
        assert running.publish(model=f"step{3 - number % 2}").status_code == 200
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert set(answered) == set(truth)
    assert len(answered) > 30


def test_only_one_model_is_published_at_a_time(
    serving: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = serving()
    begun, go_on = threading.Event(), threading.Event()
    load = publisher.load_served

    def slow(*given: Any) -> ServedModel:
        begun.set()
        assert go_on.wait(30)
        return load(*given)

    monkeypatch.setattr(publisher, "load_served", slow)
    statuses: list[int] = []
    first = threading.Thread(target=lambda: statuses.append(running.publish(model="step3").status_code))
    first.start()
    assert begun.wait(30)
    assert_refused(running.publish(model="step3"), 409, "busy")
    go_on.set()
    first.join()
    assert statuses == [200]
    assert running.client.get("/v1/model").json()["previous"].startswith("step2@")


# --- what is remembered


def test_what_is_published_is_remembered(serving: Callable[..., Running], tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    first = serving(state=path)
    assert first.publish(model="step3").json()["persisted"] is True
    version = first.client.get("/v1/model").json()["model"]
    again = serving(state=path)
    assert again.find(TEXT).json()["model"] == version
    assert again.client.get("/v1/model").json()["previous"].startswith("step2@")
    assert again.publish(previous=True).json()["model"].startswith("step2@")


def test_without_a_state_nothing_is(running: Running) -> None:
    assert running.publish(model="step2").json()["persisted"] is False


def test_two_services_do_not_share_a_state_whose_folder_neither_found(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "state.json"
    with StateFile(path).held(), pytest.raises(ConfigError, match="another service"), StateFile(path).held():
        pass


def test_another_model_on_the_command_line_is_obeyed(
    serving: Callable[..., Running], root: Path, tmp_path: Path
) -> None:
    path = tmp_path / "state.json"
    shutil.copytree(root / "step2", root / "other")
    assert serving(model_root=root, state=path).publish(model="step3").status_code == 200
    assert serving("other", model_root=root, state=path).find(TEXT).json()["model"].startswith("other@")
    state = StateFile(path).read()
    assert state is not None
    assert state.model.folder == "other"


def test_a_published_model_that_is_gone_gives_way_to_the_one_before(
    serving: Callable[..., Running], root: Path, tmp_path: Path
) -> None:
    path = tmp_path / "state.json"
    shutil.copytree(root / "step2", root / "other")
    running = serving(model_root=root, state=path)
    assert running.publish(model="other").status_code == 200
    assert running.publish(model="step3").status_code == 200
    (root / "step3").rename(root / "away3")
    assert serving(model_root=root, state=path).find(TEXT).json()["model"].startswith("other@")
    (root / "other").rename(root / "away")
    assert serving(model_root=root, state=path).find(TEXT).json()["model"].startswith("step2@")
    # What was published comes back as soon as it can be read again, though others were served meanwhile.
    (root / "away3").rename(root / "step3")
    assert serving(model_root=root, state=path).find(TEXT).json()["model"].startswith("step3@")


def test_a_state_that_cannot_be_written_down_is_not_published(
    serving: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    running = serving(state=tmp_path / "state.json")
    before = running.find(TEXT).json()

    def fail(*args: object) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(StateFile, "write", fail)
    assert_refused(running.publish(model="step3"), 503, "not_persisted")
    assert running.find(TEXT).json() == before
