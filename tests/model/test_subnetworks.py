"""Modules: fresh ones are the encoder, joins compute their formula, and nothing that comes later moves an old block."""

import copy
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ner_cl.config import HeadOptions
from ner_cl.data.batching import Batch
from ner_cl.errors import MissingExtra, ModelError
from ner_cl.model.encoder import words_of
from ner_cl.model.ner_model import NerModel
from ner_cl.model.store import load_model
from ner_cl.model.subnetworks.joins import Concatenation, Fusion, Skip, Stack
from ner_cl.model.subnetworks.kinds import Adapters
from ner_cl.model.subnetworks.modules import ModuleOptions, Modules
from ner_cl.model.subnetworks.trunk import apply_layer, run_trunk, top_layers
from tests.tiny import SENTENCES, tiny_encoder, tiny_model

KINDS = ("adapter", "copy", "ladder", "lora")
JOINS = ("concat", "separate", "sequence", "skip", "vote")
CASES = [*((kind, join) for kind in KINDS for join in JOINS), ("adapter", "fusion")]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_case = pytest.mark.parametrize(("kind", "join"), CASES, ids=["-".join(case) for case in CASES])
STEPS = (("PER",), ("LOC",), ("ORG",), ("MISC",), ("DATE",))


def test_copies_have_no_size_that_could_be_too_wide(tmp_path: Path) -> None:
    """The default size, which is for other kinds, is more than four times the width of this encoder."""
    model = tiny_model(tiny_encoder(tmp_path, hidden=16), "addner")
    assert isinstance(model.isolate(ModuleOptions(kind="copy")), Modules)
    with pytest.raises(ModelError, match="size 128 are wider than four times the encoder"):
        tiny_model(tmp_path, "addner").isolate(ModuleOptions(kind="lora"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


Grown = Callable[..., NerModel]


@pytest.fixture(scope="module")
def grown(folder: Path) -> Grown:
    """A model whose steps from `first` on have modules, with all their parameters away from where they started."""
    plain = {merge: tiny_model(folder, HeadOptions(name="addner", merge=merge)) for merge in ("resolver", "vote")}

    def grow(kind: str, join: str, steps: int, *, first: int = 2, stirred: int | None = None) -> NerModel:
        model = copy.deepcopy(plain["vote" if join == "vote" else "resolver"])
        for step in range(1, steps + 1):
            if step == first:
                size = {} if kind == "copy" else {"size": 4}
                model.isolate(ModuleOptions(kind=kind, join=join, **size))
            add(model, step, stir=step <= (steps if stirred is None else stirred))
        return model

    return grow


def add(model: NerModel, step: int, *, stir: bool = True) -> None:
    """The next step of a model, as if it had been learned."""
    model.grow(STEPS[step - 1], generator=torch.Generator().manual_seed(step))
    if model.subnetworks is not None and stir:
        modules = modules_of(model)
        modules.learn(step)
        learned(modules, step)
        if modules.fuses(step):
            modules.fuse(step)
            modules.learn(step)
            learned(modules, step)
    model.requires_grad_(True).eval()


def learned(modules: Modules, seed: int) -> None:
    """Moves all that is to be learned now."""
    draw = torch.Generator().manual_seed(100 + seed)
    with torch.no_grad():
        for parameter in modules.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.1)


def modules_of(model: NerModel) -> Modules:
    assert isinstance(model.subnetworks, Modules)
    return model.subnetworks


def batch_of(model: NerModel) -> Batch:
    return model.encode(SENTENCES).batch(range(len(SENTENCES)))


def emitted(model: NerModel, *steps: int) -> list[Tensor]:
    """What the blocks of some steps emit when these steps are asked for together."""
    batch = batch_of(model)
    with torch.inference_mode():
        blocks = model(batch, steps=steps).blocks
    return [blocks[step - 1][batch.word_mask] for step in steps]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --- what a fresh module is, and what it leaves alone


@every_case
def test_pf1_mj1_a_fresh_module_is_the_encoder_whatever_came_before(grown: Grown, kind: str, join: str) -> None:
    """To the last bit: what is added starts at exactly zero, and so does what is read of others."""
    for first in (1, 2):
        model = grown(kind, join, 3, first=first, stirred=2)
        batch = batch_of(model)
        with torch.inference_mode():
            encoder = model.encoder(batch)
            views = modules_of(model)(model, batch, [2, 3])
        assert torch.equal(views[3][..., -encoder.shape[-1] :], encoder)
        assert not torch.equal(views[2][..., -encoder.shape[-1] :], encoder)
        if join != "concat":
            assert views[3].shape == encoder.shape


@every_case
def test_mj1_pf4_old_blocks_are_the_same_to_the_last_bit_through_five_steps(
    grown: Grown, tmp_path: Path, kind: str, join: str
) -> None:
    """After every step, whichever others are asked, and in a copy that was saved and read again."""
    model = grown(kind, join, 2)
    known = emitted(model, 1, 2)
    assert not torch.equal(known[0], known[1])
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for step in (3, 4, 5):
        add(model, step)
        alone = [emitted(model, number)[0] for number in range(1, step)]
        assert same(known, alone)
        together = emitted(model, *range(1, step + 1))
        assert same(known, together[:-1])
        known = together
        after = model.state_dict()
        assert all(torch.equal(tensor, after[name]) for name, tensor in weights.items())  # PF2
        weights = {name: tensor.clone() for name, tensor in after.items()}
    model.save(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.state_dict().keys() == weights.keys()
    assert same(known, emitted(loaded, 1, 2, 3, 4, 5))
    assert loaded.head.known == model.head.known


@every_case
def test_mj5_no_gradient_reaches_what_is_frozen(grown: Grown, kind: str, join: str) -> None:
    model = grown(kind, join, 4, stirred=3)
    modules = modules_of(model)
    for fused in (False, True) if join == "fusion" else (False,):
        model.zero_grad(set_to_none=True)
        model.requires_grad_(False)
        model.head.new_block().requires_grad_(True)
        if fused:
            modules.fuse(4)
        modules.learn(4)
        batch = batch_of(model)
        model(batch, steps=[4]).blocks[3][batch.word_mask].square().sum().backward()
        reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        own = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert reached == own
        marks = ("join.steps.4.",) if fused else (".steps.4.", ".step4.")
        inside = {name for name in own if name.startswith("subnetworks")}
        assert inside
        assert all(any(mark in name for mark in marks) for name in inside)
        for name, module in modules.named_modules():
            if module.training:
                assert ".4" in name


def test_a_gradient_stops_at_others_even_where_all_parameters_ask_for_one(grown: Grown) -> None:
    """As when something is measured at the end of a step, with the modules that are read asked for too."""
    model = grown("adapter", "skip", 3)
    model(batch_of(model), steps=[2, 3]).blocks[2].square().sum().backward()
    modules = modules_of(model)
    assert all(p.grad is None or not p.grad.any() for p in modules.kind.steps["2"].parameters())
    assert all(p.grad is not None for p in modules.join.steps["3"].parameters())


@pytest.mark.parametrize("join", ["concat", "sequence", "skip"])
def test_a_module_runs_once_a_pass_however_many_read_it(
    grown: Grown, monkeypatch: pytest.MonkeyPatch, join: str
) -> None:
    model, calls = grown("adapter", join, 5), []
    layer = Adapters.layer

    def counted(self: Adapters, step: int, number: int, *rest: Any) -> Tensor:
        calls.append((step, number))
        return layer(self, step, number, *rest)

    monkeypatch.setattr(Adapters, "layer", counted)
    emitted(model, 1, 2, 3, 4, 5)
    assert sorted(calls) == [(step, number) for step in (2, 3, 4, 5) for number in (0, 1)]


# --- the formulas, written down once more


def parts(model: NerModel) -> tuple[Batch, list[nn.Module], Any]:
    """The batch, the encoder's two layers, and its own pass."""
    batch, top = batch_of(model), top_layers(model.encoder, 2)
    return batch, top, run_trunk(model.encoder, batch, top, whole=True)


def adapter(model: NerModel, step: int, number: int, states: Tensor) -> Tensor:
    made: Tensor = modules_of(model).kind.steps[str(step)][number](states)  # type: ignore[index]
    return made


@torch.inference_mode()
def test_concat_puts_final_states_side_by_side(grown: Grown) -> None:
    model = grown("copy", "concat", 4, first=3)
    batch = batch_of(model)
    views = modules_of(model)(model, batch, [1, 2, 3, 4])
    encoder, hidden = model.encoder(batch), model.encoder.hidden
    assert torch.equal(views[1], encoder)
    assert torch.equal(views[2], encoder)
    assert isinstance(modules_of(model).join, Concatenation)
    assert views[3].shape[-1] == 2 * hidden
    assert torch.equal(views[3][..., :hidden], encoder)  # once, though two steps read it
    assert torch.equal(views[4][..., : 2 * hidden], views[3])
    assert not torch.equal(views[4][..., 2 * hidden :], views[3][..., hidden:])
    assert [block.in_features for block in model.head.blocks] == [hidden, hidden, 2 * hidden, 3 * hidden]


@torch.inference_mode()
def test_skip_adds_the_states_of_all_earlier_modules(grown: Grown) -> None:
    model = grown("adapter", "skip", 3)
    batch, top, trunk = parts(model)
    join = modules_of(model).join
    assert isinstance(join, Skip)
    states: dict[int, list[Tensor]] = {1: list(trunk.states)}
    for step in (2, 3):
        laterals: Any = join.steps[str(step)]

        def lateral(height: int, step: int = step, laterals: Any = laterals) -> Tensor:
            return sum(states[j][height] @ laterals[str(j)][height - 1].weight.T for j in range(1, step))  # type: ignore[return-value]

        below = trunk.states[0]
        states[step] = [below]
        for number in (0, 1):
            output = apply_layer(top[number], below, trunk.calls[number])
            states[step].append(output + adapter(model, step, number, output))
            below = states[step][-1] + lateral(number + 1)
        found = modules_of(model)(model, batch, [step])[step]
        torch.testing.assert_close(found, words_of(below, batch), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_sequence_reads_the_states_and_the_tags_of_the_step_before(grown: Grown) -> None:
    model = grown("adapter", "sequence", 3)
    batch, top, trunk = parts(model)
    join = modules_of(model).join
    assert isinstance(join, Stack)
    before = trunk.states[-1]
    for step in (2, 3):
        said = model.head.blocks[step - 2](before).softmax(-1)
        matrix: Any = join.steps[str(step)]
        below = trunk.states[0] + torch.cat([before, said], dim=-1) @ matrix.weight.T
        for number in (0, 1):
            output = apply_layer(top[number], below, trunk.calls[number])
            below = output + adapter(model, step, number, output)
        found = modules_of(model)(model, batch, [step])[step]
        torch.testing.assert_close(found, words_of(below, batch), atol=1e-5, rtol=1e-5)
        before = below


@torch.inference_mode()
def test_fusion_attends_over_all_adapters_so_far(grown: Grown) -> None:
    model = grown("adapter", "fusion", 4)
    batch, top, trunk = parts(model)
    join = modules_of(model).join
    assert isinstance(join, Fusion)
    assert list(join.steps) == ["3", "4"]  # one adapter alone has nothing to be fused with
    below = trunk.states[0]
    for number in (0, 1):
        output = apply_layer(top[number], below, trunk.calls[number])
        attention: Any = join.fused(4).layers[number]
        asked = attention.query(output)
        values = [adapter(model, step, number, output) for step in (2, 3, 4)]
        scores = torch.stack([(asked * attention.key(value)).sum(-1) for value in values], dim=-1)
        shares = scores.softmax(-1)
        drawn = sum(shares[..., i : i + 1] * (value @ attention.value.weight.T) for i, value in enumerate(values))
        below = output + drawn
    found = modules_of(model)(model, batch, [4])[4]
    torch.testing.assert_close(found, words_of(below, batch), atol=1e-5, rtol=1e-5)


def test_fusion_starts_from_plain_values_and_is_off(folder: Path) -> None:
    model = tiny_model(folder, "addner", steps=[("PER",)])
    modules = model.isolate(ModuleOptions(kind="adapter", join="fusion", size=4))
    model.grow(("LOC",))
    model.grow(("ORG",))
    assert isinstance(modules, Modules)
    assert isinstance(modules.join, Fusion)
    assert [modules.fuses(step) for step in (2, 3)] == [False, True]
    assert not modules.join.is_on(3)
    for layer in modules.join.fused(3).layers:
        assert torch.equal(layer.value.weight, torch.eye(model.encoder.hidden))  # type: ignore[union-attr, arg-type]
    assert "subnetworks.join.steps.3.on" in model.state_dict()  # so that it goes where the weights go


# --- votes, options, peft


def test_with_votes_blocks_know_older_types(grown: Grown) -> None:
    model = grown("ladder", "vote", 3)
    assert model.head.known == [(0,), (1, 0), (2, 0, 1)]
    assert [block.out_features for block in model.head.blocks] == [3, 5, 7]
    assert model.steps_of(["PER"]) == [1, 2, 3]
    assert model.steps_of(["ORG"]) == [3]
    assert grown("ladder", "separate", 3).steps_of(["PER"]) == [1]
    assert {entity.type for entity in model.predict("Ada Smith visited Rome .", types=["PER"])} <= {"PER"}


def test_votes_need_a_head_that_counts_them(folder: Path) -> None:
    model = tiny_model(folder, "addner", steps=[("PER",)])
    model.isolate(ModuleOptions(join="vote"))
    with pytest.raises(ModelError, match=r"cannot be merged by resolver; set head\.merge: vote"):
        model.grow(("LOC",))


@pytest.mark.parametrize("kind", ["copy", "ladder", "lora"])
def test_fusion_is_of_adapters(kind: str) -> None:
    with pytest.raises(ValidationError, match=f"fusion attends over adapters, and kind is {kind}; set kind: adapter"):
        ModuleOptions(kind=kind, join="fusion")


def test_lora_without_peft_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    model = tiny_model(folder, "addner", steps=[("PER",)])
    with pytest.raises(MissingExtra, match=r"pip install 'ner-cl\[lora\]'"):
        model.isolate(ModuleOptions(kind="lora"))


def test_pf3_merging_low_rank_changes_and_taking_them_out_again_is_a_round_trip(grown: Grown) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = grown("lora", "separate", 3)
    tuned = [module for module in modules_of(model).modules() if isinstance(module, BaseTunerLayer)]
    before = [module.get_base_layer().weight.clone() for module in tuned]
    expected = emitted(model, 3)[0]
    for module in tuned:
        module.merge(adapter_names=["step3"])
    assert not torch.equal(tuned[0].get_base_layer().weight, before[0])
    torch.testing.assert_close(emitted(model, 3)[0], expected, atol=1e-4, rtol=1e-4)
    for module in tuned:
        module.unmerge()
    for module, weight in zip(tuned, before, strict=True):
        torch.testing.assert_close(module.get_base_layer().weight, weight, atol=1e-6, rtol=0)


@every_kind
def test_folders_without_a_join_are_read_as_separate(grown: Grown, tmp_path: Path, kind: str) -> None:
    model = grown(kind, "separate", 3)
    model.save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text("utf-8"))
    assert config["ner_cl"]["subnetworks"]["options"].pop("join") == "separate"
    path.write_text(json.dumps(config), "utf-8")
    assert same(emitted(load_model(tmp_path / "model"), 1, 2, 3), emitted(model, 1, 2, 3))


@every_case
def test_threads_share_a_model(kind: str, join: str, grown: Grown) -> None:
    """Hooks that one pass hangs on the encoder's layers must not catch another's."""
    model = grown(kind, join, 3)
    texts = [" ".join(sentence.words) for sentence in SENTENCES]
    alone = list(model.predict(texts))
    found: list[object] = []

    def work() -> None:
        for _ in range(5):
            try:
                found.append(list(model.predict(texts)))
            except Exception as error:
                found.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=120)
    finally:
        sys.setswitchinterval(interval)
    assert found == [alone] * 15
