"""Reading configurations: what YAML would let pass and a person would not."""

from pathlib import Path
from typing import Any

import pytest

from ner_cl.cli.options import training_options
from ner_cl.config import (
    OptimizerOptions,
    TrainingOptions,
    check_composition,
    load_config,
    parse_config,
    parse_strategies,
    validate,
)
from ner_cl.errors import ConfigError

CONFIG = """\
stream:
  corpus: {train: a.jsonl, test: b.jsonl}
  steps: [[PER], [LOC]]
"""


def config_file(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).touch()
    return path


def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    path = config_file(tmp_path, CONFIG + "seed: 1\ntraining: {epochs: 2}\nseed: 2\n")
    with pytest.raises(ConfigError, match=r"config\.yaml:6: not valid YAML \(key 'seed' stands twice; keep one\)"):
        load_config(path)
    path = config_file(tmp_path, CONFIG + "training: {epochs: 2, epochs: 3}\n")
    with pytest.raises(ConfigError, match="key 'epochs' stands twice"):
        load_config(path)


@pytest.mark.parametrize(("inside", "outside"), [("[a]", "{}"), ("{train: x.jsonl}", "x.conll")])
def test_a_corpus_that_is_no_mapping_is_refused(tmp_path: Path, inside: str, outside: str) -> None:
    (tmp_path / "pinned.yaml").write_text(f"corpus: {inside}\nsteps: [[PER]]\n")
    path = config_file(tmp_path, f"stream: {{file: pinned.yaml, corpus: {outside}}}\n")
    with pytest.raises(ConfigError, match=r"corpus: give a mapping of train, dev and test to files"):
        load_config(path)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("epochs=3", "unknown key 'epochs', did you mean training.epochs?"),
        ("lr=1e-4", "unknown key 'lr', did you mean training.optimizer.lr?"),
        ("stream.steps=[PER, LOC]", r"stream.steps.0: write a list; steps are lists of types, such as \[\[PERSON\]"),
        ("training=3", "training: write a mapping of keys to values"),
    ],
)
def test_a_likely_mistake_is_told_how_to_mend(tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(config_file(tmp_path, CONFIG), overrides=[override])


def test_it_is_told_where_the_mistake_is(tmp_path: Path) -> None:
    good = config_file(tmp_path, CONFIG)
    with pytest.raises(ConfigError, match=r"^--set: training\.epochs"):
        load_config(good, overrides=["training.epochs=no"])
    with pytest.raises(ConfigError, match=r"^environment: training\.epochs"):
        load_config(good, environment={"NER_CL__TRAINING__EPOCHS": "no"})
    bad = config_file(tmp_path, CONFIG + "training: {epochs: no}\n")
    with pytest.raises(ConfigError, match=r"^.*config\.yaml: training\.epochs"):
        load_config(bad, overrides=["seed=3"])


def test_head_and_encoder_may_be_names_alone(tmp_path: Path) -> None:
    config = load_config(config_file(tmp_path, CONFIG), overrides=["head=addner", "encoder=bert-base-cased"])
    assert (config.head.name, config.encoder.name) == ("addner", "bert-base-cased")
    with pytest.raises(ConfigError, match="did you mean 'addner'"):
        load_config(config_file(tmp_path, CONFIG), overrides=["head=adner"])


def test_a_name_alone_may_be_given_options(tmp_path: Path) -> None:
    text = CONFIG + "encoder: minilm-l6\nhead: addner\ntraining:\nstrategies: [distill, replay]\n"
    overrides = ["encoder.max_pieces=128", "head.merge=viterbi", "training.epochs=3", "strategies.1.budget=0.05"]
    config = load_config(config_file(tmp_path, text), overrides=overrides)
    assert (config.encoder.name, config.encoder.max_pieces, config.training.epochs) == ("minilm-l6", 128, 3)
    assert (config.head.name, config.head.merge) == ("addner", "viterbi")
    assert config.strategies[1].model_dump()["budget"] == 0.05
    with pytest.raises(ConfigError, match="'x' does not lead to a value"):
        load_config(config_file(tmp_path, f"{text}output: runs/x\n"), overrides=["output.x=1"])


def test_the_default_strategies_may_be_given_options(tmp_path: Path) -> None:
    config = load_config(config_file(tmp_path, CONFIG), overrides=["strategies.0.temperature=3"])
    assert [options.name for options in config.strategies] == ["distill", "frozen_trunk", "slda"]
    assert config.strategies[0].model_dump()["temperature"] == 3


@pytest.mark.parametrize("head", ["addner", "spankl"])
def test_a_head_that_a_default_strategy_cannot_train_goes_without_it(head: str, tmp_path: Path) -> None:
    both = [f"head={head}", "strategies.0.temperature=3"]
    for overrides in (both[:1], both, both[::-1]):
        config = load_config(config_file(tmp_path, CONFIG), overrides=overrides)
        assert [options.name for options in config.strategies] == ["distill", "frozen_trunk"]


def test_an_encoder_is_looked_up_like_a_corpus_file_and_paths_are_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mine", "bert-base-cased", "minilm-l6"):
        (tmp_path / name).mkdir()
    for name in ("mine", "minilm-l6"):
        (tmp_path / name / "config.json").touch()
    path = config_file(tmp_path, CONFIG)
    monkeypatch.chdir(tmp_path.parent)
    config = load_config(Path(tmp_path.name) / path.name, overrides=["encoder=mine"])
    assert config.encoder.name == str(tmp_path / "mine")
    assert config.stream.corpus.train == str(tmp_path / "a.jsonl")
    assert load_config(path, overrides=["encoder={name: mine, max_pieces: 64}"]).encoder.max_pieces == 64
    for name in ("bert-base-cased", "minilm-l6", "google/electra-small-discriminator"):
        assert load_config(path, overrides=[f"encoder={name}"]).encoder.name == name


def test_a_variable_with_one_underscore_is_told(tmp_path: Path) -> None:
    path = config_file(tmp_path, CONFIG)
    with pytest.raises(ConfigError, match=r"NER_CL_TRAINING__EPOCHS: .*; write NER_CL__TRAINING__EPOCHS"):
        load_config(path, environment={"NER_CL_TRAINING__EPOCHS": "3"})
    assert load_config(path, environment={"NER_CL_DATA": "x", "NER_CL__TRAINING__EPOCHS": "3"}).training.epochs == 3


def test_anchors_and_merges_are_read(tmp_path: Path) -> None:
    text = CONFIG + "training: &base {epochs: 2}\ngate: {<<: {max_drop: 0.1}, max_drop: 0.2}\n"
    config = load_config(config_file(tmp_path, text))
    assert (config.training.epochs, config.gate.max_drop) == (2, 0.2)


@pytest.mark.parametrize("steps", ["[]", "[[PER], []]"])
def test_a_stream_without_types_is_refused(tmp_path: Path, steps: str) -> None:
    with pytest.raises(ConfigError, match=r"stream\.steps.* at least 1 item"):
        load_config(config_file(tmp_path, CONFIG), overrides=[f"stream.steps={steps}"])


def test_a_mask_on_the_gradient_is_refused_under_adam() -> None:
    with pytest.raises(ConfigError, match="apply_to: gradient does nothing under adamw"):
        validate(OptimizerOptions, {"apply_to": "gradient"}, "training.optimizer")
    for moves in ({"weight_decay": 0.01, "momentum": 0.0}, {"weight_decay": 0.0, "momentum": 0.9}):
        with pytest.raises(ConfigError, match="apply_to: gradient needs weight_decay: 0 and momentum: 0"):
            validate(OptimizerOptions, {"name": "sgd", "apply_to": "gradient", **moves}, "training.optimizer")
    assert OptimizerOptions(name="sgd", apply_to="gradient", weight_decay=0).apply_to == "gradient"


def test_strategies_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    path = config_file(tmp_path, CONFIG + "strategies: [finetune, joint]\n")
    with pytest.raises(ConfigError, match=r"strategies: finetune and joint both say how old types are held"):
        load_config(path)
    assert [options.name for options in parse_strategies(["finetune"])] == ["finetune"]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["frozen", "spg"], "frozen trains nothing but the new block"),
        (["joint", "agem"], "joint trains on all earlier sentences"),
        ([{"name": "das", "pretrain_epochs": 1}, "gpm"], "the pre-step of das"),
        (["ncl", "gpm"], "gpm freezes biases"),
    ],
)
def test_combinations_that_would_do_nothing_or_break_a_promise_are_refused(names: list[Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        check_composition(parse_strategies(names))
    check_composition(parse_strategies(["das", "gpm"]))


def test_masks_on_gradients_hold_nothing_under_updates_of_its_own(tmp_path: Path) -> None:
    text = "training: {optimizer: {name: sgd, weight_decay: 0, apply_to: gradient}}\n"
    with pytest.raises(ConfigError, match=r"apply_to: gradient holds nothing under ncl.*use apply_to: update"):
        load_config(config_file(tmp_path, CONFIG + text + "strategies: [spg, ncl]\n"))
    load_config(config_file(tmp_path, CONFIG + text + "strategies: [spg]\n"))


def test_one_strategy_may_stand_without_a_list(tmp_path: Path) -> None:
    for text in ("strategies: spg\n", "strategies: {name: spg}\n"):
        assert [o.name for o in load_config(config_file(tmp_path, CONFIG + text)).strategies] == ["spg"]
    with pytest.raises(ConfigError, match="write a list of strategies"):
        load_config(config_file(tmp_path, CONFIG + "strategies: 3\n"))


@pytest.mark.parametrize(("key", "value"), [("order", "random"), ("increment", 2), ("first", 2)])
def test_what_makes_steps_is_refused_where_they_are_listed(key: str, value: object) -> None:
    stream = {"corpus": {"train": "a", "test": "a"}, key: value}
    with pytest.raises(ConfigError, match=f"{key} has no effect where steps are listed"):
        parse_config({"stream": {**stream, "steps": [["PER"]]}, "output": "x"})
    assert getattr(parse_config({"stream": {**stream, "steps": None}, "output": "x"}).stream, key) == value


@pytest.mark.parametrize("text", ["stream: {{ path }}", "output: 2024-13-45", "output: [", "a: b: c"])
def test_what_is_no_yaml_is_refused_with_its_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"x\.yaml.*: not valid YAML"):
        load_config(path, environment={})


def test_a_value_that_is_no_yaml_is_refused_by_every_way_to_give_it(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("output: x")
    for text in ("2024-13-45", "{{ x }}", "["):
        with pytest.raises(ConfigError, match=r"--set output=.*: the value is not valid YAML"):
            load_config(path, overrides=[f"output={text}"], environment={})
        with pytest.raises(ConfigError, match=r"--set training.epochs=.*: the value is not valid YAML"):
            training_options([f"training.epochs={text}"])


def test_a_pinned_stream_may_leave_its_corpus_empty(tmp_path: Path) -> None:
    (tmp_path / "pinned.yaml").write_text("corpus:\nsteps: [[PER]]\n")
    (tmp_path / "x.yaml").write_text("output: x\nstream: {file: pinned.yaml, corpus: {train: a, test: a}}\n")
    assert load_config(tmp_path / "x.yaml", environment={}).stream.corpus.train == "a"


def test_a_problem_is_told_by_its_key_alone() -> None:
    with pytest.raises(ConfigError, match=r"training\.epochs: Input should be greater than or equal to 1"):
        parse_config({"stream": {"corpus": {"train": "a", "test": "b"}}, "training": {"epochs": 0}})


FILES = {"train": ["a.jsonl", "c.jsonl"], "test": "b.jsonl"}


def test_a_file_for_each_step_needs_no_protocol(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    corpus = {**FILES, "dev": ["a.jsonl", "x.jsonl"]}
    config = parse_config({"stream": {"corpus": corpus, "steps": [["PER"], ["LOC"]]}}, folder=tmp_path)
    assert config.stream.protocol == "files"
    assert config.stream.corpus.train == (str(tmp_path / "a.jsonl"), "c.jsonl")  # as one of them does not exist
    assert config.stream.corpus.dev == (str(tmp_path / "a.jsonl"), "x.jsonl")
    assert validate(type(config), config.model_dump(mode="json"), "again") == config


@pytest.mark.parametrize(
    ("corpus", "more", "reason"),
    [
        (FILES, {"protocol": "greedy"}, "which no protocol divides; set protocol: files, or leave it out"),
        ({"train": "a", "test": "b"}, {"protocol": "files"}, "files needs corpus.train to be a list"),
        ({"train": "a", "dev": ["b", "c"], "test": "b"}, {}, "corpus.dev can only have a file for each step where"),
        (FILES, {"dev": "slice"}, "dev: slice has no effect"),
        ({**FILES, "dev": ["a", "b"]}, {"dev": "whole"}, "dev: whole has no effect"),
        ({**FILES, "train": ["a", 3]}, {}, r"corpus\.train\.1: Input should be a valid string"),
        ({**FILES, "dev": ["a"]}, {}, "corpus.dev has 1 files for 2 steps; give a file for each"),
        (FILES, {"steps": [["A"], ["B"], ["C"]]}, "corpus.train has 2 files for 3 steps; give a file for each"),
        (FILES, {"steps": None}, "list the types of each step, as corpus.train has a file for each"),
        ({**FILES, "train": []}, {}, "corpus.train"),
    ],
)
def test_files_that_do_not_fit_the_steps_are_refused(corpus: Any, more: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_config({"stream": {"corpus": corpus, "steps": [["PER"], ["LOC"]], **more}})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "gem", "ridge": float("inf")}, r"strategies.*ridge.*finite number"),
        ({"name": "ncl", "damping": float("inf")}, r"strategies.*damping.*finite number"),
        ({"name": "replay", "budget": float("inf"), "unit": "new_fraction"}, "budget: Input should be"),
        ({"name": "replay", "mixing": "loss", "ratio": 0.9999999999}, r"ratio.*less than or equal to 0.99"),
        ({"name": "replay", "rehearsal": 10**14}, "rehearsal.*less than or equal to"),
        ({"name": "gpm", "threshold": True}, "threshold: true is no number"),
        ({"name": "ogd", "per_step": False}, "per_step: false is no number"),
        ({"name": "replay", "budget": "1%"}, r"budget: Input should be a valid (integer|number)"),
        ({"name": "ogd", "scope": "encoder", "last": 3}, "last has no effect with scope: encoder"),
        ({"name": "distill", "temperature": 1e308}, "temperature.*less than or equal to 1000"),
        ({"name": "distill", "unlabeled": 0.999999}, "unlabeled.*less than or equal to 0.95"),
        ({"name": "distill", "unlabeled": 2, "unlabeled_sentences": 0}, r"unlabeled: .* equal to 0.95 \(and 1 more\)$"),
        ({"name": "frozen_trunk", "layers": True}, "layers: true is no number"),
        ({"name": "das", "families": "heads"}, r"families: write a list( |$)"),
    ],
)
def test_values_that_no_training_could_use_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_config({"stream": {"corpus": {"train": "a", "test": "b"}}, "strategies": [options]})


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"optimizer": {"head_lr": 0}}, "training: optimizer.head_lr: Input should be greater than 0, or 'auto'"),
        (
            {"epochs": -1, "batch_tokens": 1},
            "training: epochs: Input should be greater than or equal to 1, or 'auto' (and 1 more)",
        ),
        ({"precision": "half"}, "training: precision: Input should be 'auto', 'fp32' or 'bf16'"),
    ],
)
def test_all_that_a_key_allows_is_named_and_only_other_keys_are_counted(training: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(TrainingOptions, training, "training")
    assert str(caught.value) == said
