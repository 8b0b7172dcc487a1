"""Training progress: bars on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import final

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ner_cl.cli.console import NOTABLE_FALL, percent, say, talk
from ner_cl.errors import many
from ner_cl.train.events import EpochDone, Event, Note, Resumed, RunDone, StepDone, StepStarted, UpdateDone

__all__ = ["line_of", "progress"]

_EPOCHS_SHOWN = 50


@contextmanager
def progress(steps: int | None = None) -> Iterator[Callable[[Event], None]]:
    """Context manager that yields an event handler which shows training events on stderr.

    Args:
        steps: number of steps, if known.
    """
    if talk.is_terminal and not talk.quiet:
        with _bars() as bars:
            yield _Bars(bars, steps)
    else:
        yield _Lines()


def line_of(event: Event) -> str | None:
    """Describe an event in one line; None for an event that is not shown."""
    match event:
        case StepStarted():
            return (
                f"step {event.step} ({', '.join(event.types)}): {event.sentences} sentences, {event.words} words, "
                f"{event.updates} updates an epoch, at most {many(event.epochs, 'epoch')}, "
                f"with {', '.join(event.strategies)}"
            )
        case Note():
            return f"note: {event.text}"
        case Resumed():
            return f"step {event.step} goes on in epoch {event.epoch} after update {event.update}"
        case UpdateDone(skipped=True):
            return f"step {event.step} epoch {event.epoch}: update {event.update} skipped, its gradient is not finite"
        case EpochDone():
            found = "" if event.score is None else f", dev F1 {percent(event.score)}"
            best = ", kept" if event.best and found else ""
            return f"step {event.step} epoch {event.epoch}: {_losses(event.losses)}{found}{best}"
        case StepDone():
            scores = ", ".join(f"{type_} {percent(score)}" for type_, score in event.f1.items())
            return (
                f"step {event.step} done in {event.seconds:.0f} s: micro F1 {percent(event.micro_f1)}, "
                f"macro F1 {percent(event.macro_f1)} ({scores}){_falls(event.falls)}"
            )
        case RunDone():
            return f"all steps done in {event.seconds:.0f} s"
    return None


def _losses(losses: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4f}" for name, value in sorted(losses.items())) or "no loss"


def _falls(falls: dict[str, float]) -> str:
    """Describe the drops in F1 above `NOTABLE_FALL`, largest first."""
    worst_first = sorted(falls.items(), key=lambda item: -item[1])
    told = [f"{type_} {percent(fall)}" for type_, fall in worst_first if fall > NOTABLE_FALL]
    return f"; fell by more than a point: {', '.join(told)}" if told else ""


def _bars() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=talk,
    )


@final
class _Lines:
    """One line for every event; of many epochs, as of a head that trains alone, for some 50 of a step."""

    def __init__(self) -> None:
        self.every = 1

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, StepStarted):
            self.every = max(1, event.epochs // _EPOCHS_SHOWN)
        left_out = isinstance(event, EpochDone) and event.epoch % self.every
        if not left_out and (line := line_of(event)):
            say(line)


@final
class _Bars:
    """One bar for the steps and one for the updates of the current step; event lines are printed above them."""

    def __init__(self, bars: Progress, steps: int | None) -> None:
        self.bars = bars
        self.steps = bars.add_task("steps", total=steps, note="", visible=steps != 1)
        self.updates = bars.add_task("updates", total=None, note="")
        self.per_epoch, self.score = 0, ""

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case StepStarted():
                self.per_epoch, self.score = event.updates, ""
                title = f"step {event.step} ({', '.join(event.types[:3])}{', …' if len(event.types) > 3 else ''})"
                self.bars.reset(self.updates, total=event.updates * event.epochs, description=title, note="")
            case Resumed():
                self.bars.update(self.updates, completed=(event.epoch - 1) * self.per_epoch + event.update)
            case UpdateDone():
                loss = sum(event.losses.values())
                note = f"epoch {event.epoch}  loss {loss:.3f}{self.score}"
                self.bars.update(self.updates, advance=1, note=note)
            case EpochDone() if event.score is not None:
                self.score = f"  dev F1 {percent(event.score)}"
            case StepDone():
                self.bars.update(self.steps, completed=event.step)
        if not isinstance(event, EpochDone) and (line := line_of(event)):
            self.bars.console.print(line, markup=False, emoji=False)
