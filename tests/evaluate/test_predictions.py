"""What was found on the test set, kept in a file."""

from pathlib import Path

import pytest

from ner_cl.errors import DataError
from ner_cl.evaluate.predictions import FORMAT_VERSION, Predictions, predictions_file
from ner_cl.model.predict import ScoredSpan
from ner_cl.types import Span

FOUND = [[ScoredSpan(Span(0, 2, "PER"), 0.98765432), ScoredSpan(Span(3, 4, "Größe"), 1.0)], []]


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    kept = Predictions.of(2, "abc", FOUND)
    path = predictions_file(tmp_path, 2)
    kept.save(path)
    assert path == tmp_path / "predictions" / "02.jsonl"
    assert Predictions.load(path) == kept
    assert kept.spans == [[Span(0, 2, "PER"), Span(3, 4, "Größe")], []]
    assert kept.found[0][0].score == 0.9877


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_a_shortened_file_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.jsonl"
    Predictions.of(1, "abc", FOUND).save(path)
    path.write_text("\n".join(path.read_text("utf-8").splitlines()[:cut]), "utf-8")
    with pytest.raises(DataError, match=r"x\.jsonl: is damaged .*delete it"):
        Predictions.load(path)


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    Predictions.of(1, "abc", FOUND).save(path)
    path.write_text(path.read_text("utf-8").replace('"version": 1', f'"version": {FORMAT_VERSION + 1}'), "utf-8")
    with pytest.raises(DataError, match="has format 2, this version reads up to 1"):
        Predictions.load(path)
