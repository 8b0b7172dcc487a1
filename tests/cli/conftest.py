"""A tiny encoder, a toy corpus in files, and a model taught on it by the command itself."""

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from ner_cl.cli.app import main
from ner_cl.data.writers import write_sentences
from tests.tiny import TOY_TRAINING, tiny_encoder, toy_corpus, toy_sentences


@dataclass(frozen=True)
class Toy:
    """Where the toy things are."""

    encoder: Path
    data: Path
    config: Path
    orgs: Path

    def write_config(self, path: Path, **changes: object) -> Path:
        """A configuration like the toy's own, but for some keys."""
        path.write_text(yaml.safe_dump({**yaml.safe_load(self.config.read_text()), **changes}))
        return path


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    folder = tmp_path_factory.mktemp("toy")
    (folder / "data").mkdir()
    corpus = toy_corpus()
    for part in ("train", "dev", "test"):
        write_sentences(folder / "data" / f"{part}.jsonl", getattr(corpus, part))
    write_sentences(folder / "orgs.jsonl", toy_sentences(60, seed=9, types=("ORG",)))
    config = {
        "encoder": {"name": str(tiny_encoder(folder / "encoder")), "max_pieces": 64, "window_overlap": 16},
        "stream": {
            "corpus": {part: f"data/{part}.jsonl" for part in ("train", "dev", "test")},
            "steps": [["PER"], ["LOC"]],
        },
        "strategies": ["distill"],  # what lies low in an untrained encoder is worth nothing
        "training": TOY_TRAINING.model_dump(mode="json"),
        "output": str(folder / "unused"),
    }
    (folder / "toy.yaml").write_text(yaml.safe_dump(config))
    return Toy(folder / "encoder", folder / "data", folder / "toy.yaml", folder / "orgs.jsonl")


@pytest.fixture(scope="session")
def run_folder(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the toy stream."""
    folder = tmp_path_factory.mktemp("run") / "toy"
    assert main(["-q", "train", str(toy.config), "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def model_folder(run_folder: Path) -> Path:
    """The model after both steps."""
    return run_folder / "steps" / "02"


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Puts bytes on stdin."""

    def put(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return put
