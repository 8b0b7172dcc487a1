"""Layers that steps share run over the sentences of a step once, whichever strategy keeps the steps apart."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ner_cl.model.subnetworks.trunk import all_layers
from ner_cl.train.events import EpochDone
from tests.tiny import tiny_encoder, toy_stream
from tests.train.toy_runs import SHORT_TRAINING, learner_of

STREAM = toy_stream(train=40)
TRAINING = SHORT_TRAINING.model_copy(update={"epochs": 3})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"), layers=3)


@pytest.mark.parametrize(
    "strategy",
    [{"name": "hat", "layers": 1}, {"name": "packnet", "layers": 1}, {"name": "modules", "kind": "copy", "layers": 1}],
    ids=lambda strategy: strategy["name"],
)
def test_the_layers_below_run_once(folder: Path, strategy: dict[str, Any]) -> None:
    learner = learner_of(folder, [strategy], head="addner", training=TRAINING)
    list(learner.learn_step(STREAM.steps[0]))
    rows: list[int] = []
    second = all_layers(learner.model.encoder)[1]
    hook = second.register_forward_hook(lambda module, given, output: rows.append(len(given[0])))
    seen = []
    for event in learner.learn_step(STREAM.steps[1]):
        if isinstance(event, EpochDone):
            seen.append(sum(rows))
            rows.clear()
    hook.remove()
    assert seen[0] >= len(STREAM.steps[1].train)
    assert set(seen[1:]) == {0}
    assert learner.model.subnetworks is not None
    assert learner.model.subnetworks._cache is None
    with torch.no_grad():
        assert learner.predict(STREAM.test[:5]) == learner.predict(STREAM.test[:5])
