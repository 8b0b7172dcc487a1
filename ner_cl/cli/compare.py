"""`ner-cl compare`: compare methods side by side."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ner_cl.cli.console import emit, emit_json, say
from ner_cl.cli.options import Json
from ner_cl.errors import ConfigError
from ner_cl.files import replace_text

if TYPE_CHECKING:  # these modules import torch, which `--help` must not wait for
    from ner_cl.report.compare import Comparison

__all__ = ["compare"]

_ENDINGS = (".md", ".tex", ".csv", ".json", ".html")


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="One folder per method: a run, or a folder of seeds and orders."),
    ],
    baseline: Annotated[
        str | None, typer.Option("--baseline", metavar="NAME", help="Compare the others with this one, not the first.")
    ] = None,
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "--output", metavar="FILE", help="Also write a .md, .tex, .csv, .json or .html file; may be repeated."
        ),
    ] = None,
    allow_differences: Annotated[
        bool,
        typer.Option("--allow-differences", help="Compare runs that differ in more than the method, and say in what."),
    ] = False,
    no_predict: Annotated[
        bool, typer.Option("--no-predict", help="Load no model, and leave out tests that need predictions.")
    ] = False,
    resamples: Annotated[int, typer.Option("--resamples", min=100, help="Bootstrap draws of test sentences.")] = 2000,
    as_json: Json = False,
) -> None:
    """Compare methods side by side: means over seeds and orders, old and new types, and significance.

    Runs with the same seed and order of steps are paired. Differences in F1 are tested with a bootstrap over test
    sentences and a permutation test over pairs of runs. Runs that differ in data, protocol, budget, selection or
    encoder are refused, unless --allow-differences is given. Markdown goes to stdout; the CSV has one line per run.
    """
    from ner_cl.report.compare import compare as compare_runs

    for path in output or ():
        if path.suffix not in _ENDINGS:
            raise ConfigError(f"--output {path}: its name must end in {', '.join(_ENDINGS)}")
    found = compare_runs(
        runs,
        baseline=baseline,
        allow_differences=allow_differences,
        predict=not no_predict,
        resamples=resamples,
        say=say,
    )
    for path in output or ():
        replace_text(path, _text(found, path.suffix))
        say(f"written: {path}")
    emit_json(found.to_dict()) if as_json else emit(_text(found, ".md").rstrip("\n"))


def _text(comparison: "Comparison", ending: str) -> str:
    """Return the comparison in the format of a file name suffix."""
    from ner_cl.report.tables import to_csv, to_latex, to_markdown

    if ending == ".json":
        return json.dumps(comparison.to_dict(), indent=2, ensure_ascii=False) + "\n"
    if ending == ".html":
        from ner_cl.report.comparison_page import comparison_page

        return comparison_page(comparison)
    return {".csv": to_csv, ".tex": to_latex}.get(ending, to_markdown)(comparison)
