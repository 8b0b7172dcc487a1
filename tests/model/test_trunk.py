"""Top layers that are run apart from the rest of an encoder."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ner_cl.config import parse_strategies
from ner_cl.data.stream import Step
from ner_cl.errors import ModelError
from ner_cl.model.subnetworks.cache import TrunkCache
from ner_cl.model.subnetworks.trunk import all_layers, apply_layer, run_trunk, top_layers
from ner_cl.train.learner import Learner
from tests.strategies.test_das import KINDS, of_kind
from tests.tiny import TOY_TRAINING, tiny_encoder, tiny_model, toy_sentences


def test_a_convolution_between_layers_is_not_left_out_in_silence(tmp_path: Path) -> None:
    """That of the large DeBERTa-v2 encoders stands behind their first layer."""
    config = KINDS["deberta-v3"]()
    config.update({"conv_kernel_size": 3, "conv_act": "gelu"})
    encoder = of_kind(tiny_encoder(tmp_path), config).encoder
    assert len(top_layers(encoder, 1)) == 1
    for count in (0, 2, 3):
        with pytest.raises(ModelError, match=r"a convolution behind its first layer, .* give them fewer than its 2"):
            top_layers(encoder, count)


def test_as_many_layers_as_are_asked_for_and_no_more_than_there_are(tmp_path: Path) -> None:
    encoder = tiny_model(tmp_path / "tiny", "addner", steps=[["PER"]]).encoder
    count = len(all_layers(encoder))
    assert top_layers(encoder, count) == top_layers(encoder, 0) == all_layers(encoder)
    assert top_layers(encoder, count + 1) == all_layers(encoder)
    assert top_layers(encoder, 1) == all_layers(encoder)[-1:]


@pytest.mark.parametrize("whole", [False, True])
def test_what_was_cached_is_what_a_pass_gives(tmp_path: Path, whole: bool) -> None:
    """Whatever batches the sentences come in, but for the rounding of rows that are padded otherwise."""
    model = tiny_model(tmp_path / "tiny", "addner", steps=[["PER"]])
    encoded = model.encode(toy_sentences(30, types=("PER",)))
    top = top_layers(model.encoder, 1)
    cache = TrunkCache(model.encoder, encoded, top, whole=whole, batch_tokens=100, precision="fp32")
    batch = encoded.batch([3, 17, 5, 9])
    with torch.no_grad():
        kept, fresh = cache.trunk_pass(batch), run_trunk(model.encoder, batch, top, whole=whole)
        again = [apply_layer(top[0], run.states[0], run.calls[0]) for run in (kept, fresh)]
    assert len(kept.states) == len(fresh.states) == 1 + whole
    dev = model.encode(encoded.sentences).batch(batch.rows)
    asked_again = [cache.eval_pass(dev, whole=whole) for _ in range(2)]
    assert asked_again[0] is asked_again[1]
    assert all(torch.equal(*pair) for pair in zip(asked_again[0].states, fresh.states, strict=True))
    assert cache.eval_pass(batch, whole=whole) is not cache.eval_pass(batch, whole=whole)  # put together, not kept
    pieces = batch.piece_mask.bool()
    for one, other in zip((*kept.states, again[0]), (*fresh.states, again[1]), strict=True):
        torch.testing.assert_close(one[pieces], other[pieces], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["roberta", "deberta-v3"])
def test_the_output_alone_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """If there are no top layers; then no part of the encoder runs again, whichever way it calls its layers."""
    model = of_kind(tiny_encoder(tmp_path), KINDS[kind]())
    encoded = model.encode(toy_sentences(30, types=("PER",)))
    batch = encoded.batch([3, 17, 5, 9])
    with torch.no_grad():
        cache = TrunkCache(model.encoder, encoded, [], whole=True, batch_tokens=100, precision="fp32")
        fresh = model.encoder.run(batch)
        monkeypatch.setattr(model.encoder, "run", None)
        kept = cache.trunk_pass(batch)
    assert (len(kept.states), kept.calls) == (1, ())
    pieces = batch.piece_mask.bool()
    torch.testing.assert_close(kept.states[0][pieces], fresh[pieces], atol=1e-5, rtol=0)


def test_more_than_fits_is_run_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(tmp_path / "tiny", "addner", steps=[["PER"]])
    encoded = model.encode(toy_sentences(30, types=("PER",)))
    top = top_layers(model.encoder, 1)
    needed = 4 * model.encoder.hidden * sum(encoded.lengths)
    batch = encoded.batch([3, 17, 5, 9])
    for most, kept in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr("ner_cl.model.subnetworks.cache._MOST_BYTES", most)
        cache = TrunkCache(model.encoder, encoded, top, whole=False, batch_tokens=100, precision="fp32")
        runs: list[int] = []
        with monkeypatch.context() as counted:
            lowest = model.encoder.backbone.encoder.layer[0]
            counted.setattr(lowest, "forward", _counting(lowest.forward, runs))
            cache.trunk_pass(batch)
        assert bool(runs) != kept


def test_the_trunk_is_run_once_a_step_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(tmp_path / "tiny", "addner", steps=[["PER"]])
    sentences = tuple(s.restrict(["LOC"]) for s in toy_sentences(40, types=("LOC",)))
    runs: list[int] = []
    for name, trained in (("cached", {}), ("not cached", {"cache": False})):
        learner = Learner(model.copy(), parse_strategies([{"name": "modules", "layers": 1, **trained}]), TOY_TRAINING)
        lowest = learner.model.encoder.backbone.encoder.layer[0]
        monkeypatch.setattr(lowest, "forward", _counting(lowest.forward, runs))
        for _ in learner.learn_step(Step(2, ("LOC",), sentences, ())):
            pass
        assert (name, len(runs) < 2 * 10) == (name, name == "cached")
        runs.clear()
        assert learner.model.subnetworks._cache is None  # type: ignore[union-attr]


def _counting(forward: Any, runs: list[int]) -> Any:
    def counted(*given: Any, **named: Any) -> Any:
        runs.append(1)
        return forward(*given, **named)

    return counted
