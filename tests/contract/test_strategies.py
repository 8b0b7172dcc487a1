"""What every registered strategy must do with every head, whatever its idea."""

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch

from ner_cl.config import parse_strategies
from ner_cl.evaluate.matrix import Matrix
from ner_cl.model.store import load_model
from ner_cl.registry import heads, strategies
from ner_cl.strategies.base import Strategy
from ner_cl.train.learner import build_strategies
from ner_cl.train.run import Run, run_stream
from tests.train.toy_runs import Interrupted, interrupt_at, run_config, same_weights, step_files

PAIRS = [(strategy, head) for strategy in strategies for head in heads]
every_pair = pytest.mark.parametrize("pair", PAIRS, ids=["-".join(pair) for pair in PAIRS])
every_strategy = pytest.mark.parametrize("name", list(strategies))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("contract")


@pytest.fixture(scope="module")
def runs(home: Path) -> dict[tuple[str, str], Run]:
    """The uninterrupted run of a pair, made when it is first asked for."""

    class Runs(dict[tuple[str, str], Run]):
        def __missing__(self, pair: tuple[str, str]) -> Run:
            self[pair] = run_stream(run_config(home, **changes(pair), output=str(home / "-".join(pair))))
            return self[pair]

    return Runs()


def changes(pair: tuple[str, str]) -> dict[str, object]:
    strategy, head = pair
    return {"strategies": [strategy], "head": {"name": head}, "training": {"checkpoint_seconds": 0}}


@every_pair
def test_two_steps_train_and_old_columns_keep_their_ids(
    runs: Mapping[tuple[str, str], Run], pair: tuple[str, str]
) -> None:
    run = runs[pair]
    assert len(run.matrix.counts) == 2
    models = [load_model(run.folder / "steps" / name) for name in ("01", "02")]
    assert [model.types for model in models] == [("PER",), ("PER", "LOC")]
    assert models[1].tagset.tags[: len(models[0].tagset.tags)] == models[0].tagset.tags
    for model in models:
        assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())
    assert models[1].predict("Ada visited Rome .") is not None
    new = models[1].head.new_block().weight
    assert not torch.equal(new, torch.zeros_like(new))


@every_pair
def test_the_result_is_the_same_again_and_after_interruptions(
    home: Path, runs: Mapping[tuple[str, str], Run], pair: tuple[str, str]
) -> None:
    """S1: bit for bit, whether in one process, from a published step, or from the middle of one."""
    run = runs[pair]
    expected = step_files(run.folder)
    config = run.config.model_copy(update={"output": str(home / "stopped" / "-".join(pair))})
    stopped = Path(config.output)
    for number, update in enumerate((2, 3, 2)):
        with pytest.raises(Interrupted):
            run_stream(config, resume=number > 0, on_event=interrupt_at(update))
    run_stream(config, resume=True)
    assert step_files(stopped) == expected
    shutil.rmtree(stopped / "steps" / "02")
    shutil.rmtree(stopped / "checkpoints")
    run_stream(config, resume=True)
    assert step_files(stopped) == expected
    for path in (run.folder / "steps").glob("*/strategy/*.safetensors"):
        other = safetensors.torch.load_file(stopped / path.relative_to(run.folder))
        assert same_weights(safetensors.torch.load_file(path), other)


@every_pair
def test_a_published_step_survives_loading_and_saving(
    home: Path, runs: Mapping[tuple[str, str], Run], pair: tuple[str, str]
) -> None:
    folder = runs[pair].folder / "steps" / "02"
    copy_ = home / "saved" / "-".join(pair)
    load_model(folder).save(copy_)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(copy_)) for path in copy_.rglob("*") if path.is_file())
    for name in names:
        assert (copy_ / name).read_bytes() == (folder / name).read_bytes(), name


@every_pair
def test_bf16_trains(home: Path, pair: tuple[str, str]) -> None:
    settings = changes(pair) | {"training": {"precision": "bf16", "epochs": 1, "checkpoint_seconds": 9999}}
    run = run_stream(run_config(home, **settings, output=str(home / "bf16" / "-".join(pair))))
    weights = load_model(run.folder / "steps" / "02").state_dict()
    floating = [tensor for tensor in weights.values() if tensor.is_floating_point()]
    assert all(tensor.dtype == torch.float32 and bool(tensor.isfinite().all()) for tensor in floating)


@every_strategy
def test_the_order_of_the_list_does_not_matter(home: Path, name: str) -> None:
    """Beside one that holds old types: `distill`, or for those that do so themselves, any that does not."""
    partner = next((s for s in strategies if strategies[s].holds_old_types != strategies[name].holds_old_types), None)
    if partner is None:
        pytest.skip("no strategy is registered that could be listed beside this one")
    found = []
    for number, names in enumerate(([name, partner], [partner, name])):
        assert [s.options.name for s in build_strategies(parse_strategies(names))] == sorted(names)
        run = run_stream(run_config(home, strategies=names, output=str(home / f"{name}-order-{number}")))
        found.append(step_files(run.folder))
    assert found[0] == found[1]


@every_strategy
def test_a_strategy_is_one_final_class_with_frozen_options(name: str) -> None:
    class_ = strategies[name]
    assert issubclass(class_, Strategy)
    assert getattr(class_, "__final__", False)
    assert class_.__doc__
    options = class_.options_class()
    assert options.name == name
    assert parse_strategies([name]) == parse_strategies([{"name": name}]) == (options,)
    assert class_.options_class.model_config["frozen"]
    assert copy.deepcopy(class_(options).options) == options
    assert class_(options).state_dict() == {}


@every_strategy
def test_nothing_but_the_upper_bound_sees_earlier_data(name: str) -> None:
    assert strategies[name].needs_earlier_data == (name == "joint")


@every_pair
def test_the_matrix_on_disk_is_the_runs(runs: Mapping[tuple[str, str], Run], pair: tuple[str, str]) -> None:
    assert Matrix.load(runs[pair].folder) == runs[pair].matrix
