"""The page about a run, and the values it shows."""

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean, stdev

import pytest

from ner_cl.errors import DataError
from ner_cl.evaluate.matrix import Matrix
from ner_cl.report.collect import Report, collect
from ner_cl.report.definitions import DEFINITIONS
from ner_cl.report.drawing import INK, save_figure, svg_of
from ner_cl.report.figures import draw_all
from ner_cl.report.page import report_page
from ner_cl.report.spread import Spread
from ner_cl.train.run import run_stream
from tests.train.toy_runs import run_config


@pytest.fixture(scope="module")
def report(seeds: Path) -> Report:
    return collect(seeds)


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return report_page(report, [(item.part, svg_of(item.figure, item.label)) for item in draw_all(report)])


class References(HTMLParser):
    """Everything that a page would fetch, and the balance of its tags."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "srcset")]
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_scores_are_means_over_seeds(report: Report, seeds: Path) -> None:
    matrices = [Matrix.load(seeds / f"seed-{seed}") for seed in (1, 2)]
    values = [matrix.f1[1]["PER"] for matrix in matrices if matrix.f1[1]]
    row = report.f1[1]
    assert row is not None
    assert row["PER"] == Spread(fmean(v for v in values if v is not None), stdev(map(float, values)), 2)  # type: ignore[arg-type]
    final = [matrix.metrics["final/micro_f1"] for matrix in matrices]
    assert report.metrics["final/micro_f1"] == Spread.of(final)
    assert report.runs == (("seed-1", 1), ("seed-2", 2))
    assert report.method.startswith("finetune, head extendner")


def test_plain_fine_tuning_shows_as_forgetting(report: Report) -> None:
    """All words of the old type go astray after step 2, and its mentions head the list of lost ones."""
    table = report.confusion[2]
    assert table["old"]["old"] < 0.5 * sum(table["old"].values())
    assert report.lost
    assert {group.mistake.type for group in report.lost} == {"PER"}
    counts = [group.mistake.count for group in report.lost]
    assert counts == sorted(counts, reverse=True)
    for group in report.lost:
        [focus] = [piece for piece in group.example.gold if piece.focus]
        assert (focus.text, focus.type, focus.verdict) == (group.mistake.text, "PER", "missed")
    for group in report.invented:
        [focus] = [piece for piece in group.example.found if piece.focus]
        assert (focus.text, focus.type, focus.verdict) == (group.mistake.text, group.mistake.type, "wrong")


def test_calibration_counts_every_prediction_of_both_seeds(report: Report, seeds: Path) -> None:
    for item in report.calibration:
        found = 0
        for seed in (1, 2):
            rows = (seeds / f"seed-{seed}" / "predictions" / f"0{item.step}.jsonl").read_text().splitlines()[1:]
            found += sum(len(json.loads(row)) for row in rows)
        assert sum(cell.count for cell in item.bins) == found
        assert item.error is None or 0 <= item.error <= 1


def test_the_page_fetches_nothing_and_is_whole(page: str) -> None:
    references = References()
    references.feed(page)
    assert references.open == []
    assert [link for link in references.found if not link.startswith(("#", "data:,"))] == []
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []
    assert "<script" not in page


def test_every_figure_is_well_formed_and_in_the_colour_of_the_page(report: Report) -> None:
    names: set[str] = set()
    for item in draw_all(report):
        svg = svg_of(item.figure, item.label)
        root = ElementTree.fromstring(svg)
        assert root.attrib["aria-label"] == item.label
        assert INK not in svg
        assert "currentColor" in svg
        own = set(re.findall(r'\bid="([^"]+)"', svg))
        assert own.isdisjoint(names)
        assert set(re.findall(r'(?:url\(|href=")#([^")]+)', svg)) <= own
        names |= own


def test_every_part_has_its_figures(report: Report, page: str) -> None:
    drawn = draw_all(report)
    assert [item.name for item in drawn] == [
        "heatmap",
        "curves-1",
        "changes",
        "confusion",
        "calibration",
        "time",
        "memory",
    ]
    assert page.count("<svg") == len(drawn)
    for anchor in re.findall(r'href="#(\w+)"', page):
        assert f'id="{anchor}"' in page


def test_many_types_get_a_panel_a_step(report: Report) -> None:
    steps = tuple(tuple(f"T{step}-{i}" for i in range(8)) for step in range(2))
    cells = {name: Spread(0.5) for name in steps[0]}
    many = replace(report, steps=steps, f1=(cells, {**cells, **{name: Spread(0.25) for name in steps[1]}}))
    names = [item.name for item in draw_all(many)]
    assert [name for name in names if name.startswith("curves")] == ["curves-1", "curves-2", "curves-3", "curves-4"]


def test_names_are_escaped_and_no_formulas(report: Report) -> None:
    steps, row = (("<b>$x_1$",),), {"<b>$x_1$": Spread(0.5)}
    odd = replace(report, name="<i>", steps=steps, f1=(row,), lost=(), invented=(), confusion={}, calibration=())
    text = report_page(odd, [(item.part, svg_of(item.figure, item.label)) for item in draw_all(odd)])
    assert "<b>" not in text
    assert "<i>" not in text
    assert "&lt;b&gt;$x_1$" in text


def test_every_score_is_defined() -> None:
    assert list(DEFINITIONS) == list(Matrix.start([["A"]]).metrics)


def test_without_predictions_the_page_says_so(seeds: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(seeds / "seed-1", tmp_path / "bare"))
    shutil.rmtree(run / "predictions")
    bare = collect(run, predict=False)
    assert (bare.confusion, bare.lost, bare.calibration) == ({}, (), ())
    text = report_page(bare, [(item.part, svg_of(item.figure, item.label)) for item in draw_all(bare)])
    assert text.count("No predictions on the test set are at hand.") == 3
    assert "/bare: no predictions of step 1, 2 are at hand" in text


def test_runs_that_differ_are_not_averaged(seeds: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    shutil.copytree(seeds / "seed-1", both / "seed-1")
    config = run_config(seeds.parent, strategies=["distill"], output=str(both / "distill"), training={"epochs": 1})
    run_stream(config)
    with pytest.raises(
        DataError, match=r"both/distill and \S+both/seed-1 differ in their configurations.*ner-cl compare"
    ):
        collect(both)


@pytest.mark.parametrize("unfinished", ["seed-1", "seed-2"])
def test_the_run_that_is_not_done_is_named(seeds: Path, tmp_path: Path, unfinished: str) -> None:
    both = shutil.copytree(seeds, tmp_path / "both")
    matrix = both / unfinished / "matrix.json"
    values = json.loads(matrix.read_text())
    matrix.write_text(json.dumps({**values, "counts": values["counts"][:1]}))
    with pytest.raises(DataError, match=f"both/{unfinished} is not done"):
        collect(both)


def test_paths_of_corpora_are_told_as_others_would_write_them(seeds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NER_CL_DATA", str(seeds.parent))
    assert "train: $NER_CL_DATA/corpus/train.conll" in collect(seeds / "seed-1").config


def test_figures_are_files_too(report: Report, tmp_path: Path) -> None:
    figure = draw_all(report)[0].figure
    save_figure(figure, tmp_path / "a.png")
    save_figure(figure, tmp_path / "a.svg")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")
