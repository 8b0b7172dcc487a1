"""What training says while it runs."""

import io

import pytest
from rich.console import Console

import ner_cl.cli.progress
from ner_cl.cli.console import say
from ner_cl.cli.progress import line_of, progress
from ner_cl.train.events import EpochDone, Event, Note, Resumed, RunDone, StepDone, StepStarted, UpdateDone

EVENTS: list[Event] = [
    Note(step=2, text="spg has kept nothing of earlier steps"),
    StepStarted(step=2, types=("LOC",), sentences=10, words=50, updates=2, epochs=3, strategies=("distill", "spg")),
    Resumed(step=2, epoch=2, update=1),
    UpdateDone(step=2, epoch=2, update=2, losses={"kd": 0.25, "ce": 0.5}),
    UpdateDone(step=2, epoch=2, update=2, losses={"ce": 0.5}, skipped=True),
    EpochDone(step=2, epoch=2, losses={"kd": 0.25, "ce": 0.5}, score=0.812, best=True, seconds=1.0, sentences=10),
    StepDone(
        step=2,
        types=("LOC",),
        best_epoch=2,
        micro_f1=0.8,
        macro_f1=None,
        f1={"PER": 0.75, "LOC": None},
        train_seconds=1.0,
        seconds=2.0,
        sentences_per_second=10.0,
    ),
    StepDone(
        step=3,
        types=("ORG",),
        best_epoch=2,
        micro_f1=0.8,
        macro_f1=0.7,
        f1={"PER": 0.7, "LOC": 0.5, "DATE": 0.6, "ORG": 0.9},
        train_seconds=1.0,
        seconds=2.0,
        sentences_per_second=10.0,
        falls={"PER": 0.02, "DATE": 0.01, "LOC": 0.25},
    ),
    RunDone(metrics={}, seconds=3.0),
]
LINES = [
    "note: spg has kept nothing of earlier steps",
    "step 2 (LOC): 10 sentences, 50 words, 2 updates an epoch, at most 3 epochs, with distill, spg",
    "step 2 goes on in epoch 2 after update 1",
    None,
    "step 2 epoch 2: update 2 skipped, its gradient is not finite",
    "step 2 epoch 2: ce 0.5000 kd 0.2500, dev F1 81.2, kept",
    "step 2 done in 2 s: micro F1 80.0, macro F1 - (PER 75.0, LOC -)",
    "step 3 done in 2 s: micro F1 80.0, macro F1 70.0 (PER 70.0, LOC 50.0, DATE 60.0, ORG 90.0); "
    "fell by more than a point: LOC 25.0, PER 2.0",
    "all steps done in 3 s",
]


def test_every_event_is_one_line_or_none() -> None:
    assert [line_of(event) for event in EVENTS] == LINES


def test_elsewhere_than_on_a_terminal_there_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    ner_cl.cli.progress.talk.quiet = False
    with progress() as show:
        for event in EVENTS:
            show(event)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [line for line in LINES if line]


@pytest.mark.parametrize(("epochs", "shown"), [(10, 10), (99, 99), (100, 50), (500, 50), (520, 52)])
def test_of_hundreds_of_epochs_only_some_are_shown(epochs: int, shown: int, capsys: pytest.CaptureFixture[str]) -> None:
    ner_cl.cli.progress.talk.quiet = False
    start = StepStarted(step=1, types=("A",), sentences=6, words=9, updates=1, epochs=epochs, strategies=("frozen",))
    with progress() as show:
        show(start)
        for epoch in range(1, epochs + 1):
            show(EpochDone(step=1, epoch=epoch, losses={"ce": 0.5}, score=None, best=False, seconds=1.0, sentences=6))
    lines = capsys.readouterr().err.splitlines()[1:]
    assert len(lines) == shown
    assert lines[-1].startswith(f"step 1 epoch {epochs}:")


def test_under_quiet_there_are_no_notes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ner_cl.cli.progress.talk, "quiet", True)
    with progress() as show:
        for event in EVENTS:
            show(event)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("steps", [None, 1, 2])
def test_on_a_terminal_there_are_bars(steps: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=120, highlight=False)
    monkeypatch.setattr(ner_cl.cli.progress, "talk", terminal)
    with progress(steps) as show:
        for event in EVENTS:
            show(event)
    shown = screen.getvalue()
    assert "step 2 (LOC)" in shown
    assert "with distill, spg" in " ".join(shown.split())
    assert "note: spg has kept nothing of earlier steps" in shown
    assert "epoch 2  loss 0.500" in shown
    assert "step 2 done in 2 s" in shown
    assert "4/6" in shown or "5/6" in shown


def test_names_are_shown_as_they_are(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(ner_cl.cli.progress, "talk", Console(file=screen, force_terminal=True, width=120))
    start = StepStarted(step=1, types=("[/PER]", ":x:"), sentences=6, words=9, updates=1, epochs=1, strategies=("ewc",))
    with progress() as show:
        show(start)
    assert screen.getvalue().count("step 1 ([/PER], :x:)") >= 2  # the line and the bar
    ner_cl.cli.progress.talk.quiet = False
    say("runs/a:x:b and [/PER]")
    assert capsys.readouterr().err == "runs/a:x:b and [/PER]\n"
