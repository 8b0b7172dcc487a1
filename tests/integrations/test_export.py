"""Exported models find what the model finds, and a check says so when they do not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import spacy
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import BPE
from torch import nn

import ner_cl
from ner_cl.cli.app import main
from ner_cl.config import HeadOptions
from ner_cl.data.writers import write_sentences
from ner_cl.errors import CheckFailed, ModelError
from ner_cl.integrations.export import export_model
from ner_cl.integrations.hub import glues_words, to_token_classifier
from ner_cl.integrations.onnx import to_onnx
from ner_cl.integrations.parity import Parity, check_export
from ner_cl.model.discriminant import Discriminant
from ner_cl.model.emissions import emissions_of
from ner_cl.model.merge import exclusive_scores
from ner_cl.model.ner_model import NerModel
from ner_cl.model.predict import score_sentences
from ner_cl.model.store import load_model
from ner_cl.model.subnetworks.modules import ModuleOptions
from ner_cl.registry import heads
from tests.model.test_attention import encoder_of
from tests.tiny import tiny_encoder, tiny_model, toy_sentences, trained_model

SENTENCES = toy_sentences(25, seed=11)
TEXT = "Ada Smith visited Rome North and Bob saw Oslo ."


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def test_a_model_too_large_for_a_graph_is_refused(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(encoder, steps=[["PER"]])
    size = sum(weight.nbytes for weight in model.state_dict().values())
    monkeypatch.setattr(ner_cl.integrations.onnx, "_LARGEST", size - 1)
    with pytest.raises(ModelError, match=r"this model has .* GB; use --format spacy or hf"):
        to_onnx(model)
    monkeypatch.setattr(ner_cl.integrations.onnx, "_LARGEST", size)
    assert to_onnx(model).runtime is not None


@pytest.fixture(scope="module", params=["extendner", "addner", "spankl"])
def model(request: pytest.FixtureRequest, encoder: Path) -> NerModel:
    return trained_model(encoder, request.param)


@pytest.fixture(scope="module")
def word_tagger(model: NerModel) -> NerModel:
    """A model whose head tags words, and so can be a token classifier."""
    return model if model.head.tags_words else pytest.skip("a head that scores spans is no token classifier")


@pytest.fixture(scope="module")
def exported(model: NerModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "model"
    export_model(model, folder, format="onnx")
    return folder


def assert_alike(model: NerModel, other: NerModel) -> None:
    ours = score_sentences(model, SENTENCES, precision="fp32")
    theirs = score_sentences(other, SENTENCES)
    assert sum(map(len, ours)) > 20
    assert [[item.span for item in row] for row in theirs] == [[item.span for item in row] for row in ours]
    scores = [item.score for row in ours for item in row]
    assert [item.score for row in theirs for item in row] == pytest.approx(scores, abs=1e-4)


# --- ONNX


def test_a_graph_is_a_model_folder_like_any_other(model: NerModel, exported: Path, tmp_path: Path) -> None:
    other = ner_cl.load(exported)
    assert other.types == model.types
    assert_alike(model, other)
    other.save(tmp_path / "again")
    assert (tmp_path / "again" / "model.onnx").read_bytes() == (exported / "model.onnx").read_bytes()
    assert (tmp_path / "again" / "config.json").read_text() == (exported / "config.json").read_text()
    assert_alike(model, ner_cl.load(tmp_path / "again"))
    assert [e.text for e in other.copy().predict(TEXT)] == [e.text for e in model.predict(TEXT)]


def test_the_graph_is_what_its_description_says(model: NerModel, exported: Path) -> None:
    """Run as somebody would who has the description of its inputs and nothing of ours."""
    onnx.checker.check_model(onnx.load(exported / "model.onnx"))
    batch = model.encode(SENTENCES[:5]).batch(range(5))
    feeds = {name: getattr(batch, name).numpy() for name in ("piece_ids", "piece_mask", "word_pieces")}
    (scores,) = onnxruntime.InferenceSession(exported / "model.onnx").run(["scores"], feeds)
    with torch.inference_mode():
        expected = model(batch).flat()
    words = batch.word_mask
    torch.testing.assert_close(torch.from_numpy(scores)[words], expected[words], atol=1e-4, rtol=1e-4)


def test_the_graph_serves_in_spacy_alone_and_in_two_processes(model: NerModel, exported: Path, tmp_path: Path) -> None:
    nlp = spacy.blank("en")
    nlp.add_pipe("ner_cl", config={"model": str(exported)})
    expected = [(entity.text, entity.type) for entity in model.predict(TEXT, precision="fp32")]
    assert [(entity.text, entity.label_) for entity in nlp(TEXT).ents] == expected
    for doc in nlp.pipe([TEXT, TEXT], n_process=2, batch_size=1):
        assert [(entity.text, entity.label_) for entity in doc.ents] == expected
    nlp.to_disk(tmp_path / "pipeline")
    again = spacy.load(tmp_path / "pipeline")
    assert [(entity.text, entity.label_) for entity in again(TEXT).ents] == expected
    restored = again.from_bytes(nlp.to_bytes())
    assert [(entity.text, entity.label_) for entity in restored(TEXT).ents] == expected


def test_an_exported_model_does_not_learn(exported: Path) -> None:
    with pytest.raises(ModelError, match=r"an exported model cannot learn; teach the model that it was exported from"):
        ner_cl.learn(load_model(exported), train=toy_sentences(8, seed=1, types=("ORG",)), types=["ORG"])
    with pytest.raises(ModelError, match="exported already"):
        to_onnx(load_model(exported))
    with pytest.raises(ModelError, match="exported already"):
        to_token_classifier(load_model(exported))


def test_8_bit_integers(encoder: Path, tmp_path: Path) -> None:
    model = trained_model(encoder)
    export_model(model, tmp_path / "small", format="onnx", int8=True)
    graph = onnx.load(tmp_path / "small" / "model.onnx")
    assert {tensor.data_type for tensor in graph.graph.initializer} >= {onnx.TensorProto.INT8}
    parity = check_export(model, tmp_path / "small", SENTENCES, format="onnx")
    assert parity.sentences == 25
    assert parity.agreement is not None
    assert parity.agreement > 0.9
    assert parity.f1_before is not None
    parity.check("onnx", int8=True)


def test_votes_and_what_was_measured_of_them_go_along(encoder: Path, tmp_path: Path) -> None:
    model = tiny_model(encoder, HeadOptions(name="addner", merge="vote"), steps=())
    model.grow(["PER"])
    model.head.grow(["LOC"], covers=["PER"])
    model.head.ballot(2).measured(weight=0.4, temperature=1.7)  # type: ignore[attr-defined]
    model.eval()
    export_model(model, tmp_path / "model", format="onnx")
    other = load_model(tmp_path / "model")
    assert other.head.known == model.head.known == [(0,), (1, 0)]
    ((_, ours),) = emissions_of(model, model.encode(SENTENCES[:4]), precision="fp32")
    ((_, theirs),) = emissions_of(other, other.encode(SENTENCES[:4]))
    assert [block.shape for block in theirs.blocks] == [block.shape for block in ours.blocks]
    assert torch.equal(other.head.decode(theirs), model.head.decode(ours))
    assert float(other.head.ballot(2).weight) == pytest.approx(0.4)  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="no single classifier"):
        to_token_classifier(model)


@pytest.fixture
def corrected(encoder: Path) -> NerModel:
    """A model with a discriminant that changes much."""
    model = trained_model(encoder)
    discriminant = Discriminant.on(model.encoder, held=0, layers=1, tags=range(1, len(model.tagset)))
    discriminant.weight.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for weight in model.encoder.parameters():
            weight += 0.01  # the copies stay as they are
    model.discriminant = discriminant
    return model


def test_a_discriminant_is_a_part_of_the_graph(corrected: NerModel, tmp_path: Path) -> None:
    """Padded rows included, whose last words have no neighbour."""
    export_model(corrected, tmp_path / "model", format="onnx")
    other = load_model(tmp_path / "model")
    assert other.discriminant is None
    batch = corrected.encode(SENTENCES[:5]).batch(range(5))
    with torch.inference_mode():
        theirs, ours = other(batch).flat(), corrected(batch).flat()
        corrected.discriminant = None
        alone = corrected(batch).flat()
    assert not batch.word_mask.all()
    torch.testing.assert_close(theirs[batch.word_mask], ours[batch.word_mask], atol=1e-4, rtol=1e-4)
    assert (ours - alone).abs()[batch.word_mask].max() > 0.5


def test_what_a_token_classifier_leaves_out_is_told(
    corrected: NerModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corrected.save(tmp_path / "with")
    assert main(["export", str(tmp_path / "with"), str(tmp_path / "hf-with"), "--format", "hf"]) == 0
    assert "leaves out the statistics of tags (slda)" in capsys.readouterr().err
    corrected.discriminant = None
    corrected.save(tmp_path / "without")
    assert main(["export", str(tmp_path / "without"), str(tmp_path / "hf"), "--format", "hf"]) == 0
    assert "slda" not in capsys.readouterr().err


def test_sub_networks_are_refused(encoder: Path) -> None:
    model = tiny_model(encoder, "addner", steps=())
    model.isolate(ModuleOptions())
    model.grow(["PER"])
    for write in (to_onnx, to_token_classifier):
        with pytest.raises(ModelError, match=r"make one .* with ner-cl compact"):
            write(model)


def test_damaged_graphs(exported: Path, tmp_path: Path) -> None:
    def damaged(name: str, damage: Callable[[Path], object]) -> Path:
        shutil.copytree(exported, tmp_path / name)
        damage(tmp_path / name)
        return tmp_path / name

    for name, damage, said in (
        ("gone", lambda folder: (folder / "model.onnx").unlink(), r"model.onnx: cannot be read \(No such file"),
        (
            "bad",
            lambda folder: (folder / "model.onnx").write_bytes(b"no graph"),
            r"model.onnx: cannot be read .*export",
        ),
        ("few", lambda folder: _edit(folder, known=[[0]]), r"config.json: ner_cl.runtime: known must list"),
        ("odd", lambda folder: _edit(folder, known=None), r"config.json: ner_cl.runtime: known must list"),
    ):
        with pytest.raises(ModelError, match=said):
            load_model(damaged(name, damage))


def _edit(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["ner_cl"]["runtime"] |= values
    (folder / "config.json").write_text(json.dumps(config))


# --- transformers


def test_spans_are_no_business_of_a_token_classifier(encoder: Path) -> None:
    with pytest.raises(ModelError, match="head spankl scores spans, not words; use --format onnx or spacy"):
        to_token_classifier(tiny_model(encoder, "spankl", steps=[["PER"]]))


def test_an_encoder_whose_token_classifier_has_a_layer_of_its_own_is_refused(encoder: Path) -> None:
    """Its random weights would stand between the encoder and the output layer."""
    model = NerModel(encoder_of(encoder, "modernbert"), heads["extendner"](32, HeadOptions()))
    model.grow(["PER"])
    with pytest.raises(ModelError, match="no single output layer"):
        to_token_classifier(model)


def test_a_language_that_lacks_a_package_is_told(word_tagger: NerModel, tmp_path: Path, monkeypatch: Any) -> None:
    def lacks(language: str) -> None:
        raise ImportError("Japanese support requires SudachiPy: https://github.com/WorksApplications/SudachiPy")

    monkeypatch.setattr("spacy.blank", lacks)
    with pytest.raises(ModelError, match="language 'ja': Japanese support requires SudachiPy"):
        export_model(word_tagger, tmp_path / "out", format="spacy", language="ja")


def test_a_token_classifier_scores_words_as_the_head_does(word_tagger: NerModel, tmp_path: Path) -> None:
    """One softmax, with the temperature that calibrates it."""
    word_tagger = word_tagger.copy()
    word_tagger.head.temperatures = [1.3, 1.7][-len(word_tagger.head.temperatures) :]
    export_model(word_tagger, tmp_path / "hf", format="hf")
    classifier = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    assert tuple(classifier.config.id2label.values()) == word_tagger.tagset.tags
    batch = word_tagger.encode(SENTENCES[:6]).batch(range(6))
    with torch.inference_mode():
        pieces = classifier.eval()(input_ids=batch.piece_ids, attention_mask=batch.piece_mask).logits
        emissions = word_tagger(batch)
    words = pieces.gather(1, batch.word_pieces[..., None].expand(-1, -1, pieces.shape[-1]))
    expected = exclusive_scores(emissions.blocks) if word_tagger.head.apart else emissions.flat() / 1.7
    torch.testing.assert_close(words[batch.word_mask], expected[batch.word_mask], atol=1e-4, rtol=1e-4)


def test_the_pipeline_of_transformers_finds_the_entities(word_tagger: NerModel, tmp_path: Path) -> None:
    export_model(word_tagger, tmp_path / "hf", format="hf")
    tagger = transformers.pipeline("token-classification", str(tmp_path / "hf"), aggregation_strategy="first")
    found = [(TEXT[item["start"] : item["end"]], item["entity_group"]) for item in tagger(TEXT)]
    assert found == [(entity.text, entity.type) for entity in word_tagger.predict(TEXT)]
    assert check_export(word_tagger, tmp_path / "hf", SENTENCES, format="hf").agreement == pytest.approx(1.0, abs=0.05)
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "library_name: transformers" in card
    assert 'aggregation_strategy="first"' in card
    assert "ner_cl.load" not in card


def test_tokenizers_that_do_not_mark_what_continues_a_word_are_known(encoder: Path) -> None:
    assert not glues_words(transformers.AutoTokenizer.from_pretrained(encoder))
    bytes_alone = Tokenizer(BPE({"a": 0, "<unk>": 1}, [], unk_token="<unk>"))
    assert glues_words(transformers.PreTrainedTokenizerFast(tokenizer_object=bytes_alone))


# --- the command


def test_the_command_writes_and_checks(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for format_ in ("spacy", "hf"):
        words = ["export", str(model_folder), str(tmp_path / format_), "--format", format_, "--check"]
        assert main(words) == 0, capsys.readouterr().err
        assert capsys.readouterr().out.startswith("6 sentences: ")
    write_sentences(tmp_path / "gold.jsonl", SENTENCES, format="jsonl")
    words = ["export", str(model_folder), str(tmp_path / "x"), "--check", "--json"]
    assert main([*words, "--data", str(tmp_path / "gold.jsonl")]) == 0
    parity = json.loads(capsys.readouterr().out)
    assert parity["agreement"] == 1.0
    assert parity["f1_before"] == parity["f1_after"] > 0.5


def test_the_model_in_an_exported_pipeline_is_pointed_out(word_tagger: NerModel, tmp_path: Path) -> None:
    export_model(word_tagger, tmp_path / "spacy", format="spacy")
    with pytest.raises(ModelError, match=r"spacy: is a spaCy pipeline; its model is .*spacy/ner_cl$"):
        load_model(tmp_path / "spacy")
    assert load_model(tmp_path / "spacy" / "ner_cl").types == word_tagger.types


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--format", "onxx"], "did you mean 'onnx'?"),
        (["--format", "hf", "--int8"], "--int8 is for --format onnx"),
        (["--int8", "--check"], "give annotated sentences with --data"),
        (["--format", "spacy", "--language", "tlh"], "language 'tlh': spaCy has none of that code"),
        (["--format", "hf", "--language", "de"], "--language is for --format spacy"),
        (["--alignment", "expand"], "--alignment: nothing is read; give --data too"),
    ],
)
def test_wrong_usage(
    model_folder: Path, tmp_path: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(model_folder), str(tmp_path / "out"), *flags]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_left_alone(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "diary.txt").write_text("dear")
    assert main(["export", str(model_folder), str(tmp_path), "--format", "hf"]) == 2
    assert "choose another one" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]


# --- checks can fail


def test_a_wrong_export_fails_its_check(word_tagger: NerModel, tmp_path: Path) -> None:
    export_model(word_tagger, tmp_path / "hf", format="hf")
    classifier = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "hf")
    nn.init.zeros_(classifier.classifier.weight)
    classifier.save_pretrained(tmp_path / "hf")
    parity = check_export(word_tagger, tmp_path / "hf", SENTENCES, format="hf")
    with pytest.raises(CheckFailed, match=r"agrees with the model in 0\.00 %"):
        parity.check("hf", int8=False)


def test_a_tokenizer_that_cuts_letters_apart_fails_the_check(word_tagger: NerModel, tmp_path: Path) -> None:
    parities = {}
    for language in ("en", "zh"):
        export_model(word_tagger, tmp_path / language, format="spacy", language=language)
        parities[language] = check_export(word_tagger, tmp_path / language, SENTENCES, format="spacy")
    assert {language: parity.agreement for language, parity in parities.items()} == {"en": 1.0, "zh": 1.0}
    parities["en"].check("spacy", int8=False)
    with pytest.raises(CheckFailed, match=r"where it reads text, .* with another --language, such as xx"):
        parities["zh"].check("spacy", int8=False)


def test_limits_of_the_check() -> None:
    Parity(9, 0.9995, 0.8, 0.796).check("onnx", int8=False)
    Parity(9, 0.9, 0.8, 0.796).check("onnx", int8=True)
    with pytest.raises(CheckFailed, match=r"finds anything in 9 sentences, so nothing is checked; give .* --data"):
        Parity(9, None, None, None).check("onnx", int8=True)
    with pytest.raises(CheckFailed, match=r"agrees .* 99.80 %"):
        Parity(9, 0.998, None, None).check("onnx", int8=False)
    with pytest.raises(CheckFailed, match=r"fell from 80.00 to 79.40"):
        Parity(9, 0.9, 0.8, 0.794).check("onnx", int8=True)
    with pytest.raises(CheckFailed, match=r"fell from 80.00 to 0.00"):
        Parity(9, 1.0, 0.8, None).check("hf", int8=False)
