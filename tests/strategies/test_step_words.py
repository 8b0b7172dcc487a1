"""The words of a step in one line agree with its batches."""

from pathlib import Path

import pytest
import torch

from ner_cl.strategies.step_words import StepWords
from tests.tiny import tiny_model, toy_sentences

NEW = tuple(sentence.restrict({"LOC"}) for sentence in toy_sentences(12, seed=3, types=("PER", "LOC")))
KEPT = toy_sentences(4, seed=8, types=("PER",))


@pytest.mark.parametrize("rows", [[0, 5, 2], [3], range(30)])
def test_words_are_filed_by_their_number(tmp_path: Path, rows: list[int]) -> None:
    model = tiny_model(tmp_path, steps=[["PER"], ["LOC"]], max_pieces=10, window_overlap=4)
    encoded = model.encode([*NEW, *KEPT])
    words = StepWords.of(encoded, torch.device("cpu"))
    assert len(encoded) > len(NEW) + len(KEPT)  # some sentences are read in several windows
    batch = encoded.batch(rows)
    numbers, mask = batch.word_numbers, batch.word_mask
    assert torch.equal(words.targets[numbers][mask], batch.targets[mask])
    kept = torch.tensor([origin == "remembered" for origin in batch.origins]).unsqueeze(1).expand_as(mask)
    assert torch.equal(words.own[numbers][mask], ~kept[mask])
    for place, row in enumerate(batch.rows):
        mine = numbers[place][mask[place]]
        assert set(words.sentences[mine].tolist()) == {encoded.windows[row].sentence}
        assert set(words.rows[mine].tolist()) == {row}


def test_a_word_is_outside_typed_or_of_a_remembered_sentence(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, steps=[["PER"], ["LOC"]])
    words = StepWords.of(model.encode([*NEW, *KEPT]), torch.device("cpu"))
    assert torch.equal(words.outside ^ words.typed, words.own)
    assert set(words.targets[words.typed].tolist()) == {3, 4}
    assert set(words.targets[~words.own].tolist()) == {0, 1, 2}
