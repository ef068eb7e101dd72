"""The only file that imports matplotlib: empty axes with the report's look, tick marks, and the finished SVG string.

Names in figures come from users: mathematics in text is switched off, text stays text (no glyph paths), and what is
drawn is a function of the result alone.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from limbeck.errors import missing_library
from limbeck.reporting import svg, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

C = svg.STAND_IN
SMALL, NORMAL = 11.5, 12.5  # px
Row = Mapping[str, Any]  # a line of metrics.jsonl


def require() -> None:
    """Raise InputError with the line that installs matplotlib, where it is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise missing_library("matplotlib", "report", "the report's figures") from error


@contextmanager
def draw(
    key: str, width: int, height: int, *, left: int, bottom: int, top: int, right: int
) -> Iterator[tuple[Figure, Axes]]:
    """Axes with the report's look; sizes in CSS pixels, since 72 dots per inch make one SVG unit one pixel."""
    require()
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_settings(key)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser's fonts draw the text, not matplotlib's
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        FigureCanvasSVG(figure)
        box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
        axes = figure.add_axes(box)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.grid(axis="y", color=C["line"], linewidth=0.8)
        axes.set_axisbelow(True)
        axes.patch.set_visible(False)
        figure.patch.set_visible(False)
        yield figure, axes


def _settings(key: str) -> Any:  # matplotlib's type of the keys differs between versions
    return {
        "svg.fonttype": "none", "svg.hashsalt": key, "text.parse_math": False, "font.family": "sans-serif", "font.size": NORMAL,
        "axes.edgecolor": C["line"], "axes.labelcolor": C["muted"], "text.color": C["ink"], "xtick.color": C["line"],
        "ytick.color": C["line"], "xtick.labelcolor": C["muted"], "ytick.labelcolor": C["muted"], "xtick.major.size": 4,
        "ytick.major.size": 0, "axes.labelsize": SMALL, "xtick.labelsize": SMALL, "ytick.labelsize": SMALL, "axes.unicode_minus": True,
    }  # fmt: skip


def finish(figure: Figure, key: str, label: str) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return svg.tidy(stream.getvalue(), key, label)


def short(name: str, limit: int = 22) -> str:
    return words.public(name, limit)


def log_ticks(axes: Axes, text: Callable[[float], str]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    low, high = axes.get_xlim()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if math.log10(high / low) < 2.2 else (1,)
    ticks = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: text(value * (1 + 1e-9)).replace(".0 ", " "))


def plain_log_y(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    low, high = axes.get_ylim()
    steps = (1.0, 2.0, 5.0) if math.log10(high / low) < 1.5 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=steps, numticks=12))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def whole_ticks(axes: Axes) -> None:
    """Only whole numbers along x."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def has_number(row: Row, key: str) -> bool:
    """Whether the row holds a finite number there."""
    value = row.get(key)
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
