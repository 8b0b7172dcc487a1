"""The real `spacy` program, in processes that never import ner_cl themselves."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import spacy
from spacy.tokens import DocBin

from tests.integrations.conftest import entities

pytestmark = pytest.mark.slow

TRAIN_CONFIG = """
[paths]
train = {gold}
dev = {gold}

[system]
seed = 1

[nlp]
lang = "en"
pipeline = ["ner_cl", "textcat"]

[components]

[components.ner_cl]
source = {pipeline}

[components.textcat]
factory = "textcat"

[components.textcat.model]
@architectures = "spacy.TextCatBOW.v3"
exclusive_classes = true
length = 64
ngram_size = 1
no_output_layer = false

[corpora]

[corpora.train]
@readers = "spacy.Corpus.v1"
path = ${{paths.train}}

[corpora.dev]
@readers = "spacy.Corpus.v1"
path = ${{paths.dev}}

[training]
train_corpus = "corpora.train"
dev_corpus = "corpora.dev"
frozen_components = ["ner_cl"]
annotating_components = ["ner_cl"]
seed = 1
gpu_allocator = null
accumulate_gradient = 1
patience = 0
max_epochs = 0
dropout = 0.1
before_to_disk = null
before_update = null
max_steps = 4
eval_frequency = 2

[training.optimizer]
@optimizers = "Adam.v1"

[training.batcher]
@batchers = "spacy.batch_by_sequence.v1"
size = 8

[training.logger]
@loggers = "spacy.ConsoleLogger.v1"

[training.score_weights]
cats_score = 1.0
"""


def call(*arguments: object, folder: Path | None = None, site: Path | None = None) -> None:
    """Runs a module, with the packages in `site` before the installed ones."""
    command = [sys.executable, "-m", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(site)} if site else None
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def saved(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    nlp = spacy.blank("en")
    nlp.add_pipe("ner_cl", config={"model": str(model_folder), "precision": "fp32"})
    nlp.to_disk(folder)
    return folder


def test_apply(tmp_path: Path, saved: Path, texts: list[str]) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    call("spacy", "apply", saved, tmp_path / "texts.jsonl", tmp_path / "found.spacy")
    nlp = spacy.load(saved)
    docs = list(DocBin(store_user_data=True).from_disk(tmp_path / "found.spacy").get_docs(nlp.vocab))
    assert [entities(doc) for doc in docs] == [entities(doc) for doc in nlp.pipe(texts)]


def test_train_with_the_component_frozen_and_annotating(
    tmp_path: Path, saved: Path, gold_file: Path, texts: list[str]
) -> None:
    nlp = spacy.load(saved)
    docs = list(nlp.pipe(texts))
    for number, doc in enumerate(docs):
        doc.cats = {"A": float(number % 2), "B": float(1 - number % 2)}
    DocBin(docs=docs).to_disk(tmp_path / "train.spacy")
    config = TRAIN_CONFIG.format(gold=json.dumps(str(tmp_path / "train.spacy")), pipeline=json.dumps(str(saved)))
    (tmp_path / "train.cfg").write_text(config)
    call("spacy", "train", tmp_path / "train.cfg", "--output", tmp_path / "out")
    trained = spacy.load(tmp_path / "out" / "model-best")
    assert trained.pipe_names == ["ner_cl", "textcat"]
    assert [entities(doc) for doc in trained.pipe(texts)] == [entities(doc) for doc in docs]
    for path in (saved / "ner_cl").iterdir():
        assert (tmp_path / "out" / "model-best" / "ner_cl" / path.name).read_bytes() == path.read_bytes()


def test_an_installed_package_is_evaluated(tmp_path: Path, saved: Path, gold_file: Path) -> None:
    pytest.importorskip("setuptools", reason="`spacy package` builds with it")
    site = tmp_path / "site"
    (tmp_path / "out").mkdir()
    call("spacy", "package", saved, tmp_path / "out", "--name", "toy", "--build", "sdist")
    (package,) = (tmp_path / "out").rglob("*.tar.gz")
    offline = ("--no-deps", "--no-index", "--no-build-isolation")
    call("pip", "install", "--quiet", *offline, "--target", site, package)
    shutil.rmtree(tmp_path / "out")
    (metadata,) = site.glob("en_toy-*.dist-info/METADATA")
    version = re.escape(importlib.metadata.version("ner-cl"))
    assert len(re.findall(rf"^Requires-Dist: ner[-_]cl\b.*>={version}", metadata.read_text(), re.MULTILINE)) == 1
    call("spacy", "evaluate", "en_toy", gold_file, "--output", tmp_path / "scores.json", site=site)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["ents_f"] > 0.8
    assert set(scores["ents_per_type"]) == {"PER", "LOC"}
