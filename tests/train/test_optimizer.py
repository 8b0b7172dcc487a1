"""The optimizer's groups and the shape of the learning rate."""

from pathlib import Path

import pytest
import torch

from ner_cl.config import OptimizerOptions, parse_strategies
from ner_cl.train.events import EpochDone
from ner_cl.train.learner import Learner
from ner_cl.train.optimizer import make_optimizer, rate_factor, set_peak_rates
from tests.tiny import TOY_TRAINING, tiny_model, toy_stream


def test_the_rate_rises_to_its_peak_and_falls_in_a_straight_line() -> None:
    factors = [rate_factor(update, 100, 0.1) for update in range(100)]
    assert factors[:10] == pytest.approx([(update + 1) / 11 for update in range(10)])
    assert factors[10] == max(factors) == 1.0
    falls = [factors[update] - factors[update + 1] for update in range(10, 99)]
    assert falls == pytest.approx([1 / 90] * 89)
    assert min(factors) > 0  # an update that moves nothing would be a waste
    assert factors[-1] == pytest.approx(1 / 90)


@pytest.mark.parametrize("updates", [1, 2, 3, 7])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0])
def test_the_rate_is_never_zero_and_never_above_its_peak(updates: int, warmup: float) -> None:
    assert all(0 < rate_factor(update, updates, warmup) <= 1 for update in range(updates))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_groups_spare_biases_and_norms_and_give_the_head_its_own_rate(tmp_path: Path, name: str) -> None:
    model = tiny_model(tmp_path, steps=[("PER",), ("LOC",)])
    frozen = model.encoder.backbone.get_input_embeddings().requires_grad_(False).weight
    options = OptimizerOptions(name=name, lr=1e-3, head_lr=1e-2, weight_decay=0.05, momentum=0.5)
    optimizer = make_optimizer(model, options)
    assert isinstance(optimizer, torch.optim.AdamW if name == "adamw" else torch.optim.SGD)
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert id(frozen) not in of
    for parameter_name, parameter in model.named_parameters():
        if parameter is frozen:
            continue
        group = of.pop(id(parameter))
        spared = parameter_name.endswith("bias") or "LayerNorm" in parameter_name
        assert group["weight_decay"] == (0.0 if spared else 0.05), parameter_name
        assert group["lr"] == group["peak"] == (1e-2 if parameter_name.startswith("head.") else 1e-3), parameter_name
        assert group.get("momentum", 0.5) == 0.5
    assert not of


def test_a_frozen_encoder_gets_no_group(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, steps=[("PER",)])
    model.encoder.requires_grad_(False)
    optimizer = make_optimizer(model, OptimizerOptions())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


def rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    return {group["part"]: group["peak"] for group in optimizer.param_groups}


def test_a_head_that_trains_alone_has_a_higher_rate_of_its_own(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, steps=[("PER",)])
    assert rates(make_optimizer(model, OptimizerOptions(lr=1e-4))) == {"encoder": 1e-4, "head": 1e-3}
    optimizer = make_optimizer(model, OptimizerOptions(lr=1e-4))
    model.encoder.requires_grad_(False)
    assert rates(make_optimizer(model, OptimizerOptions(lr=1e-4))) == {"head": 1e-2}
    assert rates(make_optimizer(model, OptimizerOptions(head_lr=2e-3))) == {"head": 2e-3}
    set_peak_rates(optimizer, model, OptimizerOptions(lr=1e-4))
    assert rates(optimizer)["head"] == 1e-2


@pytest.mark.parametrize("kind", ["ladder", "copy"])
def test_a_head_beside_modules_does_not_train_alone(tmp_path: Path, kind: str) -> None:
    options = parse_strategies([{"name": "modules", "kind": kind}])
    model = tiny_model(tmp_path, "addner", steps=[])
    learner = Learner(model, options, TOY_TRAINING.model_copy(update={"epochs": 1, "optimizer": OptimizerOptions()}))
    seen = [
        rates(make_optimizer(model, OptimizerOptions()))["head"]
        for step in toy_stream().steps
        for event in learner.learn_step(step)
        if isinstance(event, EpochDone)
    ]
    assert model.subnetworks is not None  # which the second step has trained
    assert seen == [1e-3, 1e-3]


@pytest.mark.parametrize("name", ["frozen", "ice"])
def test_the_rate_rises_in_the_epoch_in_which_the_encoder_stands_still(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.optim.Optimizer] = []

    def make(*args: object) -> torch.optim.Optimizer:
        made.append(make_optimizer(*args))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr("ner_cl.train.loop.make_optimizer", make)
    training = TOY_TRAINING.model_copy(update={"epochs": 3, "optimizer": OptimizerOptions()})
    learner = Learner(tiny_model(tmp_path), parse_strategies([{"name": name, "warmup_epochs": 2}]), training)
    heads = []
    for step in toy_stream().steps:
        for event in learner.learn_step(step):
            if isinstance(event, EpochDone):
                heads.append(rates(made[-1])["head"])
    assert heads == [1e-3, 1e-3, 1e-2, 1e-2, 1e-2, 1e-2]
