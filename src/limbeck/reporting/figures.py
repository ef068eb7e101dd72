"""The front and the episodes of a proof, as inline SVG strings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from limbeck.contracts import MemberReport, Proof, RunResult
from limbeck.reporting import canvas, words
from limbeck.reporting.canvas import C, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = ("o", "s", "^", "D", "v", "P")
HEADROOM = 4.0  # px above the axes that labels may use: the title stands higher

Box = tuple[float, float, float, float]  # left, bottom, right, top in px


@dataclass(frozen=True)
class Dot:
    """A member in the front."""

    x: float
    y: float  # retention
    low: float  # lower bound of the retention, NaN where there is none
    label: str
    verdict: str  # "proved", "not proved", "undecided" or "raced"
    marker: str = "o"


# ---------------------------------------------------------------- the front


def front_by_size(result: RunResult, metrics: Sequence[Row]) -> str:
    """Retention against bytes."""
    dots = [_dot(m, float(m.size_bytes), metrics) for m in result.members if m.size_bytes > 0]
    return _front("size", result, [d for d in dots if d is not None], "size of the exported student", words.size, 660)


def front_by_latency(result: RunResult, metrics: Sequence[Row]) -> str:
    """Retention against the p50 of one step, one marker per target; "" without measurements."""
    targets = sorted({t for m in result.members for t in m.latency})
    dots = []
    for target, marker in zip(targets, MARKERS, strict=False):
        for member in result.members:
            if target in member.latency:
                dots.append(_dot(member, member.latency[target].p50_seconds, metrics, target, marker))
    known = [d for d in dots if d is not None and d.x > 0]
    if not known:
        return ""
    return _front("latency", result, known, "one step, median, batch 1", words.duration, 460, legend=targets)


def _dot(member: MemberReport, x: float, metrics: Sequence[Row], target: str = "", marker: str = "o") -> Dot | None:
    label = canvas.short(member.spec) if not target else ""
    if member.proof is not None and math.isfinite(member.proof.retention):
        low = math.nan if target else member.proof.retention_low  # one whisker per member is enough
        return Dot(x, member.proof.retention, low, label, member.proof.verdict, marker)
    raced = [
        r
        for r in metrics
        if r.get("stage") == "race" and r.get("member") == member.name and canvas.has_number(r, "retention")
    ]
    return Dot(x, float(raced[-1]["retention"]), math.nan, label, "raced", marker) if raced else None


def _front(
    key: str,
    result: RunResult,
    dots: Sequence[Dot],
    x_label: str,
    x_format: Callable[[float], str],
    width: int,
    legend: Sequence[str] = (),
) -> str:
    with canvas.draw(key, width, 400, left=56, bottom=50, top=34, right=18) as (figure, axes):
        axes.set_xscale("log")
        low, high = _retention_limits(result, dots)
        axes.set_ylim(low, high)
        axes.set_xlim(*_log_limits([d.x for d in dots]))
        canvas.log_ticks(axes, x_format)
        axes.yaxis.set_major_formatter(lambda value, _: words.percent(value))
        axes.set_xlabel(x_label, color=C["muted"])
        axes.set_title("kept of the teacher's return", loc="left", fontsize=canvas.SMALL, color=C["muted"], pad=14)
        named = _reference_lines(axes, result, low, dots)
        for dot in dots:
            _draw_dot(axes, dot)
        _place_labels(axes, [d for d in dots if d.label], named, result.retain)
        _marker_legend(axes, legend)
        return canvas.finish(figure, key, f"Share of the teacher's return kept, against {x_label}: {_in_words(dots)}")


def _in_words(dots: Sequence[Dot]) -> str:
    return (
        "; ".join(f"{d.label or 'student'} {words.percent(d.y)} ({d.verdict})" for d in dots) or "no student was played"
    )


def _retention_limits(result: RunResult, dots: Sequence[Dot]) -> tuple[float, float]:
    """From below random play where some student is poor, zoomed in where all are good."""
    values = [d.y for d in dots] + [d.low for d in dots if math.isfinite(d.low)] + [1.0, result.retain]
    lowest, highest = max(min(values), -1.0), min(max(values), 3.0)
    if lowest < 0.5:
        lowest = min(lowest, 0.0)
    margin = 0.08 * max(highest - lowest, 0.05)
    return lowest - margin, highest + margin


def _log_limits(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return 1.0, 1000.0
    low, high = math.log10(min(values)), math.log10(max(values))
    room = max(0.12 * (high - low), 0.2)
    return 10 ** (low - room), 10 ** (high + room)


def _reference_lines(axes: Axes, result: RunResult, low: float, dots: Sequence[Dot]) -> list[Box]:
    """The lines that dots are held against, each with its name where no dot lies; the boxes of these names."""
    named: list[Box] = []
    lines = [
        (1.0, "ink", "-", "teacher"),
        (result.retain, "accent", (0, (4, 3)), f"{words.percent(result.retain)} asked for"),
    ]
    if low < 0:
        lines.append((0.0, "muted", (0, (1, 2)), "random play"))
    else:
        _note(axes, 0.005, 0.03, "random play = 0 %, below this axis", "left")
    for value, colour, dashes, text in lines:
        if value == 1.0 and result.retain == 1.0 and text != "teacher":
            continue
        axes.axhline(value, color=C[colour], linewidth=1.0, linestyle=dashes, zorder=1)
        apart = axes.transData.transform((1, 1.0))[1] - axes.transData.transform((1, value))[1]
        under = 0 < apart < canvas.SMALL + 8  # no room for the name between this line and the teacher's
        box = _beside_dots(axes, value, text, dots, under)
        named.append(box)
        axes.annotate(
            text, (0.0, value), xycoords=("axes fraction", "data"), xytext=(box[0] - axes.bbox.x0, -3 if under else 3),
            textcoords="offset points", ha="left", va="top" if under else "bottom", fontsize=canvas.SMALL, color=C[colour], zorder=5,
        )  # fmt: skip
    return named


def _beside_dots(axes: Axes, value: float, text: str, dots: Sequence[Dot], under: bool) -> Box:
    """Where the name of the line at `value` covers no dot, as far left as may be; at the left end where dots are everywhere."""
    y, width, high = float(axes.transData.transform((1, value))[1]), 0.56 * canvas.SMALL * len(text), canvas.SMALL + 3
    low = y - 3 - high if under else y + 3
    centres = [axes.transData.transform((d.x, d.y)) for d in dots]
    first = axes.bbox.x0 + 4
    for left in np.arange(first, axes.bbox.x1 - width, 8):
        box = (float(left), low, float(left) + width, low + high)
        if not any(_overlap(box, (x - 7, y - 7, x + 7, y + 7)) for x, y in centres):
            return box
    return (first, low, first + width, low + high)


def _note(axes: Axes, x: float, y: float, text: str, align: str) -> None:
    axes.text(x, y, text, transform=axes.transAxes, ha=align, fontsize=canvas.SMALL, color=C["muted"])


def _draw_dot(axes: Axes, dot: Dot) -> None:
    colour = C[{"proved": "accent", "not proved": "warn"}.get(dot.verdict, "muted")]
    solid = dot.verdict == "proved"
    if math.isfinite(dot.low):
        axes.plot([dot.x, dot.x], [dot.low, dot.y], color=colour, linewidth=1.2, zorder=2)
        axes.plot([dot.x], [dot.low], marker="_", markersize=7, color=colour, markerfacecolor="none", zorder=2)
    axes.plot(
        [dot.x], [dot.y], marker=dot.marker, markersize=5.5 if dot.verdict == "raced" else 9, linestyle="none", zorder=3,
        markerfacecolor=colour if solid else C["paper"], markeredgecolor=colour, markeredgewidth=1.6,
    )  # fmt: skip


def _marker_legend(axes: Axes, targets: Sequence[str]) -> None:
    """Which marker is which export target, above the axes."""
    right, height = 1.0, 1.05
    for target, marker in reversed(list(zip(targets, MARKERS, strict=False))):
        text = canvas.short(target, 8)
        axes.text(
            right,
            height,
            text,
            transform=axes.transAxes,
            ha="right",
            va="center",
            fontsize=canvas.SMALL,
            color=C["ink"],
        )
        right -= (0.66 * canvas.SMALL * len(text) + 9) / axes.bbox.width
        axes.plot(
            [right], [height], transform=axes.transAxes, clip_on=False, marker=marker, markersize=6.5, color=C["muted"], linestyle="none",
        )  # fmt: skip
        right -= 16 / axes.bbox.width


def _place_labels(axes: Axes, dots: Sequence[Dot], named: Sequence[Box], retain: float) -> None:
    """Each label at the place near its dot that covers no dot and no other label, with the fewest lines through it and the
    shortest way; with a thin leader where that is far. Where all is taken the nearest place must do: a name that is
    missing is worse than one that is covered."""
    centres = [axes.transData.transform((d.x, d.y)) for d in dots]
    taken = [*named, *((x - 6, y - 6, x + 6, y + 6) for x, y in centres)]
    whiskers = [
        (x - 1, float(axes.transData.transform((dot.x, dot.low))[1]), x + 1, y)
        for dot, (x, y) in zip(dots, centres, strict=True)
        if math.isfinite(dot.low)
    ]
    left, bottom, right, top = axes.bbox.extents
    levels = [float(axes.transData.transform((1, value))[1]) for value in (1.0, retain)]
    lines = [(left, y - 1, right, y + 1) for y in levels]
    for dot, (x, y) in zip(dots, centres, strict=True):
        width, height = 0.56 * canvas.NORMAL * len(dot.label), canvas.NORMAL
        found: list[tuple[float, Box, float, float]] = []
        for dx, dy in _offsets(width):
            box = (x + dx - width / 2, y + dy - height / 2, x + dx + width / 2, y + dy + height / 2)
            if left < box[0] and box[2] < right and bottom < box[1] and box[3] < top + HEADROOM:
                covered = sum(_overlap(box, other) for other in taken)
                crossed = sum(_overlap(box, w) for w in whiskers) + 4 * sum(_overlap(box, line) for line in lines)
                found.append((1e6 * covered + 40 * crossed + math.hypot(dx, 1.5 * dy), box, dx, dy))
        if found:
            _, box, dx, dy = min(found)
            taken.append(box)
            _label(axes, dot, dx, dy, far=abs(dy) > 20 or abs(dx) > width / 2 + 20)


def _offsets(width: float) -> list[tuple[float, float]]:
    beside = width / 2 + 11
    near = [(0.0, 15.0), (0.0, -16.0)] + [(side * beside, dy) for side in (1, -1) for dy in (0.0, 15.0, -16.0)]
    far = [sign * dy for dy in range(30, 191, 16) for sign in (1, -1)]
    return near + [(float(dx), float(dy)) for dy in (15, -16, *far) for dx in (0, 30, -30, 60, -60, 90, -90, 130, -130)]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _label(axes: Axes, dot: Dot, dx: float, dy: float, far: bool) -> None:
    arrow = {"arrowstyle": "-", "color": C["line"], "linewidth": 1.0, "shrinkB": 5} if far else None
    axes.annotate(
        dot.label, (dot.x, dot.y), xytext=(dx, dy), textcoords="offset points", ha="center", va="center",
        fontsize=canvas.NORMAL, color=C["ink"], arrowprops=arrow, zorder=4 if far else 5,  # leaders pass below the labels that need none
    )  # fmt: skip


# ---------------------------------------------------------------- a proof's episodes


def episode_strip(proof: Proof, key: str) -> str:
    """Paired differences D = S - r T - (1 - r) R in seed order with their running mean."""
    student, teacher, chance = (
        np.asarray(x, float) for x in (proof.student_returns, proof.teacher_returns, proof.random_returns)
    )
    n = min(len(student), len(teacher), len(chance))
    difference = student[:n] - proof.retain * teacher[:n] - (1 - proof.retain) * chance[:n]
    order = np.arange(1, n + 1)
    with canvas.draw(key, 480, 180, left=58, bottom=36, top=12, right=10) as (figure, axes):
        axes.axhline(0, color=C["ink"], linewidth=1.0, zorder=2)
        for rows, colour in ((difference >= 0, "accent"), (difference < 0, "warn")):
            _dots(axes, order[rows].astype(float), difference[rows], C[colour])
        axes.plot(order, np.cumsum(difference) / order, color=C["ink"], linewidth=1.6, zorder=3)
        axes.set_xlim(0, n + 1)
        axes.set_xlabel("episode, in seed order", color=C["muted"])
        axes.set_ylabel("difference", color=C["muted"])
        axes.yaxis.set_major_formatter(lambda value, _: words.number(value))
        axes.locator_params(axis="y", nbins=5)
        said = f"{int((difference >= 0).sum())} of {n} paired differences at or above zero, mean {words.number(float(difference.mean()) if n else math.nan)}"
        return canvas.finish(figure, key, said)


def _dots(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64], colour: str) -> None:
    """Dots as one path of very short strokes with round ends: an element per dot makes a page of many members slow."""
    gap = np.full_like(x, np.nan)
    xs, ys = np.stack([x, x + 1e-3, gap], axis=1).reshape(-1), np.stack([y, y, gap], axis=1).reshape(-1)
    (line,) = axes.plot(xs, ys, color=colour, alpha=0.75, linewidth=4.2, solid_capstyle="round", zorder=1)
    line.get_path().should_simplify = False
