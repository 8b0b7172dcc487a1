"""The strategy and the head that the how-to shows do what it says, and models with them can be opened again."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ner_cl.model.store import load_model
from ner_cl.registry import heads, strategies
from tests.tiny import toy_stream
from tests.train.toy_runs import GOOD_TRAINING, learn_all, learner_of, same_weights, toy_encoder

HOW_TO = Path(__file__).parents[1] / "docs" / "how-to.md"


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both files, imported as the how-to says."""
    assert "distill" in strategies  # the built-in ones are loaded
    assert "addner" in heads
    blocks = re.findall(r"^```python\n(.*?)^```", HOW_TO.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("anchor", "cosine"):
        [code] = [block for block in blocks if block.startswith(f'"""{name.capitalize()}: ')]
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
        importlib.import_module(name)
    yield
    del strategies._parts["anchor"], heads._parts["cosine"]


@pytest.mark.usefixtures("shown")
def test_the_strategy_and_the_head_of_the_how_to_learn(tmp_path: Path) -> None:
    stream = toy_stream(train=120)
    learner = learner_of(
        toy_encoder(tmp_path / "encoder"), [{"name": "anchor", "weight": 0.01}], head="cosine", training=GOOD_TRAINING
    )
    assert [strategy.options.name for strategy in learner.strategies] == ["anchor", "distill"]
    learn_all(learner, stream)
    learner.model.save(tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert same_weights(again, learner.model)
    sentences = stream.test_at(2)
    found = learner.predict(sentences)
    right = sum(len({*spans} & {*sentence.spans}) for spans, sentence in zip(found, sentences, strict=True))
    gold = sum(len(sentence.spans) for sentence in sentences)
    assert right > 0.5 * gold, (right, gold)
