"""Predictions on the test set after each step, stored so that a run can be analysed without its models."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ner_cl.errors import DataError
from ner_cl.files import read_json_lines, replace_file
from ner_cl.model.predict import ScoredSpan
from ner_cl.types import Span

__all__ = ["FORMAT_VERSION", "Predictions", "predictions_file"]

FORMAT_VERSION = 1


def predictions_file(run: Path, step: int) -> Path:
    """Return the path of a run's predictions after a step."""
    return run / "predictions" / f"{step:02d}.jsonl"


@dataclass(frozen=True, slots=True)
class Predictions:
    """The spans found in every sentence of a test set after one step, each with its probability.

    Attributes:
        step: the step, from 1.
        test: `fingerprint` of the whole test set, which shows whether predictions are for the same sentences.
        found: the spans of each sentence, in order.
    """

    step: int
    test: str
    found: tuple[tuple[ScoredSpan, ...], ...]

    @property
    def spans(self) -> list[list[Span]]:
        """The spans without their scores."""
        return [[item.span for item in sentence] for sentence in self.found]

    @classmethod
    def of(cls, step: int, test: str, found: Sequence[Sequence[ScoredSpan]]) -> "Predictions":
        """Build from lists; scores are rounded as in the file."""
        rows = (tuple(ScoredSpan(item.span, round(item.score, 4)) for item in row) for row in found)
        return cls(step, test, tuple(rows))

    def save(self, path: Path) -> None:
        """Write JSON lines: a header, then per sentence a list of `[start, end, type, score]` with word offsets."""
        head = {"version": FORMAT_VERSION, "step": self.step, "test": self.test, "sentences": len(self.found)}
        with replace_file(path) as file:
            file.write(json.dumps(head).encode() + b"\n")
            for row in self.found:
                spans = [[item.span.start, item.span.end, item.span.type, item.score] for item in row]
                file.write(json.dumps(spans, ensure_ascii=False).encode() + b"\n")

    @staticmethod
    def test_of(path: Path) -> str:
        """The fingerprint of the test set in a file written by `save`; "" if the file is damaged."""
        with path.open(encoding="utf-8") as file:
            try:
                return str(json.loads(file.readline())["test"])
            except (ValueError, KeyError, TypeError):
                return ""

    @classmethod
    def load(cls, path: Path) -> "Predictions":
        """Read a file written by `save`.

        Raises:
            DataError: if the file is damaged or has a newer format version.
        """
        try:
            head, *rows = read_json_lines(path)
            if head["version"] > FORMAT_VERSION:
                raise DataError(f"{path}: has format {head['version']}, this version reads up to {FORMAT_VERSION}")
            found = tuple(tuple(map(_scored, row)) for row in rows)
            if len(found) != head["sentences"]:
                raise ValueError(f"{len(found)} of {head['sentences']} sentences")
            return cls(head["step"], head["test"], found)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: is damaged ({error}); delete it, and it will be made again") from None


def _scored(item: Sequence[Any]) -> ScoredSpan:
    start, end, type_, score = item
    return ScoredSpan(Span(start, end, type_), score)
