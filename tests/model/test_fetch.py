"""Models of the hub, from its cache: nothing here can reach the hub itself."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest

import ner_cl
from ner_cl.cli.app import main
from ner_cl.errors import ModelError
from ner_cl.model.fetch import is_hub_id
from tests.tiny import tiny_model

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with two revisions of `ada/tagger`, the second of which knows one type more; and nothing else around."""
    repository = tmp_path / "cache" / "models--ada--tagger"
    (repository / "refs").mkdir(parents=True)
    for name, steps in (("v1", [("PER",)]), ("main", [("PER",), ("LOC",)])):
        (repository / "refs" / name).write_text(COMMITS[name])
        tiny_model(tmp_path / "encoder", steps=steps).save(repository / "snapshots" / COMMITS[name])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def test_a_model_of_the_hub_is_loaded_by_its_name(shared: Path) -> None:
    assert ner_cl.load("ada/tagger").types == ("PER", "LOC")
    assert ner_cl.load("ada/tagger", revision="v1").types == ("PER",)
    assert not any(shared.iterdir())


def test_a_folder_of_that_name_comes_first(shared: Path, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "cache" / "models--ada--tagger" / "snapshots" / COMMITS["v1"], shared / "ada" / "tagger")
    assert ner_cl.load("ada/tagger").types == ("PER",)


@pytest.mark.usefixtures("shared")
def test_the_command_line_takes_names_too(capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.txt").write_text("Ada lives in Rome .\n")
    assert main(["predict", "ada/tagger", "text.txt"]) == 0
    assert main(["predict", "ada/other", "text.txt"]) == 2
    assert "ada/other: no such model folder, and not to be had from the Hugging Face hub" in capsys.readouterr().err


def test_the_sizes_told_of_it_are_those_of_its_files(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", "ada/tagger", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    snapshot = tmp_path / "cache" / "models--ada--tagger" / "snapshots" / COMMITS["main"]
    assert told["model"] == "ada/tagger"
    assert told["bytes"] == sum(path.stat().st_size for path in snapshot.rglob("*") if path.is_file())


@pytest.mark.usefixtures("shared")
def test_what_is_not_there_is_told_in_one_line() -> None:
    with pytest.raises(ModelError, match=r"^ada/nobody: no such model folder, and not to be had from") as caught:
        ner_cl.load("ada/nobody")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "may_be"),
    [
        ("ada/tagger", True),
        ("tagger", False),
        ("a/b/c", False),
        ("../tagger", False),
        ("/ada/tagger", False),
        ("./ada", False),
        ("ada/ta gger", False),
        ("here/tagger", False),
    ],
)
def test_what_can_be_a_name_of_the_hub(
    name: str, may_be: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below a folder that is there a name is a path that was mistyped, and nobody is asked."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert is_hub_id(Path(name)) == may_be
