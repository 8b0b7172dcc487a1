"""`ner-cl report`: one page about a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ner_cl.cli.console import emit, emit_json, say
from ner_cl.cli.options import Json
from ner_cl.files import replace_text

if TYPE_CHECKING:  # these modules import torch, which `--help` must not wait for
    from ner_cl.report.figures import Drawn

__all__ = ["report"]


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, or folder of several seeds.")],
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="File of the page; RUN/report.html by default.")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option("--figures", metavar="DIR", help="Also write every figure here, as PNG and SVG.")
    ] = None,
    no_predict: Annotated[
        bool, typer.Option("--no-predict", help="Load no model; show what the run saved, and say what is missing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show the results of a run on one self-contained page.

    The page shows the F1 of every type over the steps, forgetting and transfer, confused words, lost and made-up
    mentions, calibration, time and memory, and the exact configuration; for several seeds, means. With --json all
    values go to stdout, and a page is written only with --output.
    """
    from ner_cl.report.collect import collect
    from ner_cl.report.figures import draw_all  # fails early if the extra `report` is not installed
    from ner_cl.report.page import report_page

    found = collect(run, predict=not no_predict, say=say)
    for note in found.notes:
        say(f"note: {note}")
    if as_json:
        emit_json(found.to_dict())
        if output is None and figures is None:
            return
    drawn = draw_all(found)
    if figures is not None:
        _save(drawn, figures)
    if output is None and as_json:
        return
    from ner_cl.report.drawing import svg_of

    page = output or run / "report.html"
    replace_text(page, report_page(found, [(item.part, svg_of(item.figure, item.label)) for item in drawn]))
    say(f"the page is {page}") if as_json else emit(str(page))


def _save(drawn: "list[Drawn]", folder: Path) -> None:
    """Save every figure as PNG and SVG."""
    from ner_cl.report.drawing import save_figure

    for item in drawn:
        for ending in ("png", "svg"):
            save_figure(item.figure, folder / f"{item.name}.{ending}")
    say(f"{2 * len(drawn)} figures are in {folder}")
