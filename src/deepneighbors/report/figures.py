"""Figures of the book: drawn once for the light page and once for the dark one, under one number.

A notebook's output carries the PNG that Jupyter and Colab show and, beside it, both SVG images. When a
chapter is published (:mod:`deepneighbors.report.publish`) they become files and a MyST ``figure`` directive.
"""

import base64
import html
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from deepneighbors.errors import InputError
from deepneighbors.report.tables import check_label, inline_html, one_line

MIME = "application/vnd.deepneighbors.figure+json"
_STYLES = Path(__file__).parent
_INLINE_DPI = 96  # a CSS pixel is 1/96 inch
_SVG = {"Date": None, "Creator": None}  # the same figure gives the same file


class Canvas:
    """What a drawing function draws on: called like ``plt.subplots``, it returns ``(figure, axes)``.

    ``dark`` tells which page it is for; ``ink`` is the colour of text, ``muted`` of lines that stand back,
    ``palette`` a list of colours that colour-blind readers can tell apart.
    """

    def __init__(self, *, dark: bool) -> None:
        self.dark = dark
        self.ink: str = mpl.rcParams["text.color"]
        self.muted: str = mpl.rcParams["axes.edgecolor"]
        self.palette: list[str] = list(mpl.rcParams["axes.prop_cycle"].by_key()["color"])
        self.figure: Figure | None = None

    def __call__(
        self, rows: int = 1, columns: int = 1, *, size: tuple[float, float] | None = None, **options: Any
    ) -> tuple[Figure, Any]:
        """A figure of ``size`` inches (at most about 7 wide, to stay readable) and its axes."""
        self.figure = Figure(figsize=size, layout="constrained")
        return self.figure, self.figure.subplots(rows, columns, **options)


@dataclass(frozen=True)
class Picture:
    """One drawn figure: SVG for the light and the dark page, PNG on white for a notebook and for download."""

    name: str
    caption: str
    alt: str
    light: str
    dark: str
    png: bytes
    width: int

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> tuple[dict, dict]:
        png = base64.b64encode(self.png).decode()
        record = {key: getattr(self, key) for key in ("name", "caption", "alt", "light", "dark")}
        data = {"image/png": png, "text/html": self.html(), "text/plain": self.caption, MIME: record}
        return data, {"image/png": {"alt": self.alt, "width": self.width}}

    def html(self) -> str:
        """The figure with its caption in one piece, for a notebook that does not know MyST."""
        png = base64.b64encode(self.png).decode()
        image = f'<img src="data:image/png;base64,{png}" alt="{html.escape(self.alt)}" width="{self.width}">'
        return f"<figure>{image}<figcaption>{inline_html(self.caption)}</figcaption></figure>"


def picture(draw: Callable[[Canvas], object], *, name: str, caption: str, alt: str) -> Picture:
    """Call ``draw(canvas)`` in each style; it must draw the same both times, so from saved results."""
    check_label(name, caption)
    if not alt.strip():
        raise InputError(f"figure {name!r} has no alt text; say in a sentence or two what it shows")
    light, figure = _drawn(draw, name, dark=False)
    figure.set_layout_engine("none")  # it was laid out for the SVG, and the styles differ in colours only
    dark, _ = _drawn(draw, name, dark=True, like=figure)
    with _styled(name, dark=False):
        png = _png(figure)
    width = round(figure.get_figwidth() * _INLINE_DPI)
    return Picture(name, one_line(caption), one_line(alt), light.decode(), dark.decode(), png, width)


def page_markdown(record: dict[str, str], stem: str) -> str:
    """MyST for a published figure with the files ``<stem>-light.svg``, ``<stem>-dark.svg``, ``<stem>.png``.

    The dark image stands in the legend, as the directive takes one image; ``book/_ext/lightdark.py`` moves it
    up.
    """
    alt = json.dumps(record["alt"], ensure_ascii=False)
    dark = f"```{{image}} {stem}-dark.svg\n:alt: {alt}\n:class: page-dark dark-light\n```"
    light = f"````{{figure}} {stem}-light.svg\n:name: {record['name']}\n:alt: {alt}\n:class: page-light dark-light"
    return f"{light}\n\n{record['caption']} {{download}}`PNG <{stem}.png>`\n\n{dark}\n````\n"


def _styled(name: str, *, dark: bool) -> Any:
    # The salt makes the identifiers inside an SVG the same in each run, so that a re-run gives the same file.
    sheets = [_STYLES / "common.mplstyle", _STYLES / f"{'dark' if dark else 'light'}.mplstyle"]
    return style.context([*map(str, sheets), {"svg.hashsalt": name}])


def _drawn(draw: Callable[[Canvas], object], name: str, *, dark: bool, like: Figure | None = None) -> tuple[bytes, Figure]:
    """The SVG and its figure, laid out as another one where there is one: to find a layout takes longer than to draw."""
    with _styled(name, dark=dark):
        canvas = Canvas(dark=dark)
        draw(canvas)
        if canvas.figure is None:
            raise InputError(f"the drawing function of figure {name!r} made no figure; call its argument first")
        stream = io.BytesIO()
        if like is None:
            canvas.figure.savefig(stream, format="svg", metadata=_SVG)
        else:
            _lay_out(canvas.figure, like)
            canvas.figure.set_dpi(mpl.rcParams["savefig.dpi"])
            FigureCanvasSVG(canvas.figure).print_svg(stream, metadata=_SVG)
        return stream.getvalue(), canvas.figure


def _lay_out(figure: Figure, like: Figure) -> None:
    """Put the axes and titles of a figure where they are in another one with the same parts.

    Such a figure is printed by its canvas: ``savefig`` would draw it once before, only to find a layout.
    """
    figure.set_layout_engine("none")
    for axes, other in zip(figure.axes, like.axes, strict=True):
        axes.set_position(other.get_position(original=True))
    for name in ("_suptitle", "_supxlabel", "_supylabel"):
        title, other_title = getattr(figure, name), getattr(like, name)
        if title is not None:
            title.set_position(other_title.get_position())


def _png(figure: Figure) -> bytes:
    """The PNG of a figure that has been laid out, on white."""
    figure.set_dpi(mpl.rcParams["savefig.dpi"])
    figure.set_facecolor("white")
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream, metadata={"Software": None})
    return stream.getvalue()
