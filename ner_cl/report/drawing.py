"""Drawing with matplotlib, in colours that suit any colour vision and both light and dark pages."""

import html
import io
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from ner_cl.errors import MissingExtra

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingExtra("drawing needs matplotlib; run: pip install 'ner-cl[report]'") from error

__all__ = ["COLOURS", "DASHES", "INK", "MARKERS", "Axes", "Figure", "canvas", "room_for", "save_figure", "svg_of"]

# Okabe & Ito 2008, "Color Universal Design", without yellow and black, which vanish on light or dark pages.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
INK = "#1b1f24"
"""Colour of text and axes; pages replace it with their own text colour."""

_PIXELS = 96
_LETTER = 6.2
"""Mean width of a letter in pixels."""
_STYLE: dict[str, Any] = {
    "font.size": 9,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "ner_cl",
}
_serial = count(1)


@contextmanager
def _styled() -> Iterator[None]:
    """Apply the style and silence warnings about glyphs missing from the local font."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


@contextmanager
def canvas(width: int, height: int) -> Iterator[tuple[Figure, Axes]]:
    """Yield a figure of the given size in pixels with one pair of axes, in the project's style."""
    with _styled():
        figure = Figure(figsize=(width / _PIXELS, height / _PIXELS), dpi=_PIXELS)
        yield figure, figure.add_subplot()


def room_for(names: Iterable[str]) -> int:
    """Return the width in pixels that names need at the left of a figure."""
    return min(300, round(14 + _LETTER * max(map(len, names))))


def svg_of(figure: Figure, label: str) -> str:
    """Convert a figure to an `<svg>` element for a page: text in the page's colour, ids unique among figures.

    Args:
        figure: any figure.
        label: text alternative that describes the figure.
    """
    buffer = io.StringIO()
    with _styled():
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    name = f"f{next(_serial)}-"
    text = re.sub(r'\bid="', f'id="{name}', text)
    text = re.sub(r'(url\(|href=")#', rf"\g<1>#{name}", text)
    text = text.replace("'DejaVu Sans', ", "'DejaVu Sans', Verdana, ")
    width, height = (round(size * _PIXELS) for size in figure.get_size_inches())
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    shape = f'role="img" aria-label="{html.escape(label)}" style="width: {width}px; aspect-ratio: {width} / {height}"'
    return text.replace("<svg", f"<svg {shape}", 1)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to a file on a white background; the suffix chooses the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _styled():
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=2 * _PIXELS, facecolor="white", metadata=metadata)
