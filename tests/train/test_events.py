"""The log of events survives a process that was killed while it wrote."""

from pathlib import Path

import pytest

from ner_cl.train.events import EventLog, Note, UpdateDone


def test_only_the_line_that_was_not_finished_is_lost(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    for number in (1, 2):
        log.write(Note(step=number, text="é"))
    whole = (tmp_path / "events.jsonl").read_bytes()
    for cut in (1, 2, 20):
        (tmp_path / "events.jsonl").write_bytes(whole[:-cut])
        log.write(Note(step=3, text="after"))
        log.write(Note(step=4, text="more"))
        steps = [event["step"] for event in log.read()]
        assert steps == ([1, 2, 3, 4] if cut == 1 else [1, 3, 4])  # without its line end, a line is still whole


@pytest.mark.parametrize("event", [UpdateDone(step=1, epoch=1, update=1, losses={}, skipped=False)])
def test_updates_are_not_logged(tmp_path: Path, event: UpdateDone) -> None:
    EventLog(tmp_path / "events.jsonl").write(event)
    EventLog(None).write(Note(step=1, text="nowhere"))
    assert not list(tmp_path.iterdir())
