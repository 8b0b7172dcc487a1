import json
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from ner_cl.cli.app import main
from ner_cl.config import load_config
from ner_cl.data.readers import read_sentences
from ner_cl.errors import DataError
from ner_cl.types import Sentence, Span

NAMES = ["O", "B-PER", "I-PER", "B-LOC"]
ROWS = {"id": ["0", "1"], "tokens": [["Ada", "Lovelace", "writes"], ["In", "London"]], "ner_tags": [[1, 2, 0], [0, 3]]}
FEATURES = Features({"id": Value("string"), "tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=NAMES))})


@pytest.fixture
def tagged() -> Dataset:
    return Dataset.from_dict(ROWS, features=FEATURES)


def assert_read(sentences: list[Sentence]) -> None:
    assert [sentence.words for sentence in sentences] == [("Ada", "Lovelace", "writes"), ("In", "London")]
    assert [sentence.spans for sentence in sentences] == [(Span(0, 2, "PER"),), (Span(1, 2, "LOC"),)]
    assert all(sentence.annotated_types == {"PER", "LOC"} for sentence in sentences)


def test_parquet_with_class_labels(tagged: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    tagged.to_parquet(path)
    assert_read(read_sentences(path))


def test_sources_count_rows(tagged: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    tagged.to_parquet(path)
    assert [sentence.source for sentence in read_sentences(path)] == [f"{path}:1", f"{path}:2"]


def test_json_with_string_tags(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    rows = [
        {"tokens": t, "ner_tags": [NAMES[i] for i in n]} for t, n in zip(ROWS["tokens"], ROWS["ner_tags"], strict=True)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    assert_read(read_sentences(path, format="hub"))


def test_folder_of_splits(tagged: Dataset, tmp_path: Path) -> None:
    DatasetDict({"train": tagged.select([0]), "test": tagged}).save_to_disk(tmp_path / "d")
    assert_read(read_sentences(f"{tmp_path / 'd'}#test", format="hub"))
    assert len(read_sentences(tmp_path / "d", format="hub")) == 1
    with pytest.raises(DataError, match="cannot be loaded as a data set"):
        read_sentences(f"{tmp_path / 'd'}#none", format="hub")


def test_a_split_is_not_read_from_a_data_set_without_splits(tagged: Dataset, tmp_path: Path) -> None:
    """One would be scored on what one trained on."""
    tagged.save_to_disk(tmp_path / "one")
    assert_read(read_sentences(f"{tmp_path / 'one'}#train"))
    with pytest.raises(DataError, match=r"one#test: holds a single data set, train, and no splits; leave #test out"):
        read_sentences(f"{tmp_path / 'one'}#test")
    (tmp_path / "test").mkdir()
    DatasetDict({"test": tagged})["test"].to_parquet(tmp_path / "test" / "x.parquet")
    Dataset.from_parquet(str(tmp_path / "test" / "x.parquet"), split="test").save_to_disk(tmp_path / "two")
    assert_read(read_sentences(f"{tmp_path / 'two'}#test"))


def test_a_folder_of_parquet_files_as_the_hub_has_them(tagged: Dataset, tmp_path: Path) -> None:
    (tmp_path / "set" / "data").mkdir(parents=True)
    for number in range(2):
        tagged.select([number]).to_parquet(tmp_path / "set" / "data" / f"train-0000{number}-of-00002.parquet")
    tagged.select([0]).to_parquet(tmp_path / "set" / "data" / "test-00000-of-00001.parquet")
    assert_read(read_sentences(tmp_path / "set"))
    assert len(read_sentences(f"{tmp_path / 'set'}#test")) == 1


@pytest.mark.parametrize("form", ["list of structs", "struct of lists"])
def test_text_with_spans(tmp_path: Path, form: str) -> None:
    spans = [{"start": 3, "end": 9, "label": "LOC"}]
    column = (
        spans
        if form == "list of structs"
        else {key: [span[key] for span in spans] for key in ("start", "end", "label")}
    )
    Dataset.from_dict({"text": ["in London"], "spans": [column]}).to_parquet(tmp_path / "x.parquet")
    (sentence,) = read_sentences(tmp_path / "x.parquet")
    assert (sentence.words, sentence.spans) == (("in", "London"), (Span(1, 2, "LOC"),))


def test_numbers_without_names_are_refused(tmp_path: Path) -> None:
    Dataset.from_dict({"tokens": [["a"]], "ner_tags": [[3]]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x.parquet:1: has numbers in ner_tags"):
        read_sentences(tmp_path / "x.parquet")


def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError) as caught:
        read_sentences("nobody/no_such_set:en#validation", format="hub")
    assert str(caught.value).startswith("nobody/no_such_set:en#validation: cannot be loaded as a data set (")
    assert "\n" not in str(caught.value)


def test_local_files_that_are_not_there_never_ask_the_hub(tmp_path: Path) -> None:
    for name in (tmp_path / "x.parquet", "corpus.json", "data/x/y/z"):
        with pytest.raises(DataError, match="no such file"):
            read_sentences(name, format="hub")


def test_files_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"abc")
    with pytest.raises(DataError, match="is no parquet, arrow, JSON or CSV file"):
        read_sentences(tmp_path / "x.bin", format="hub")
    (tmp_path / "x.parquet").write_bytes(b"abc")
    with pytest.raises(DataError, match="cannot be loaded as a data set"):
        read_sentences(tmp_path / "x.parquet")


def test_a_saved_data_set_is_found_by_the_command_and_beside_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {"tokens": [["Ada", "slept"], ["Bob", "left"]], "ner_tags": [["B-PER", "O"], ["B-PER", "O"]]}
    data = Dataset.from_dict(rows)
    DatasetDict({"train": data, "validation": data.select([0]), "test": data}).save_to_disk(tmp_path / "set")
    for flags in (["--format", "hub"], []):
        assert main(["data", "check", str(tmp_path / "set"), *flags, "--json"]) == 0
        assert '"dev"' in capsys.readouterr().out
    data.save_to_disk(tmp_path / "one")
    assert main(["data", "check", str(tmp_path / "one")]) == 0
    assert [sentence.words for sentence in read_sentences(tmp_path / "one")] == [("Ada", "slept"), ("Bob", "left")]
    DatasetDict({"train": data, "test": data, "extra": data}).save_to_disk(tmp_path / "more")
    assert main(["data", "split", str(tmp_path / "more"), str(tmp_path / "steps")]) == 0
    assert "#extra is left out" in capsys.readouterr().err
    (tmp_path / "configs").mkdir()
    config = tmp_path / "configs" / "c.yaml"
    corpus = "{format: hub, train: 'set#train', dev: 'set#validation', test: 'set#test'}"
    config.write_text(f"stream: {{corpus: {corpus}, steps: [[PER]]}}\n")
    monkeypatch.setenv("NER_CL_DATA", str(tmp_path))
    assert load_config(config).stream.corpus.train == f"{tmp_path / 'set'}#train"
    monkeypatch.delenv("NER_CL_DATA")
    (tmp_path / "set").rename(tmp_path / "configs" / "set")
    assert load_config(config).stream.corpus.dev == f"{tmp_path / 'configs' / 'set'}#validation"
