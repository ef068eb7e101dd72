"""Learning curves as inline SVG strings: one line per member, one colour and one label per shape."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from limbeck.contracts import RunResult
from limbeck.reporting import canvas, svg, words
from limbeck.reporting.canvas import C, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Ends = Mapping[str, tuple[float, str]]  # shape of a member -> last value, colour


def loss_curves(metrics: Sequence[Row]) -> str:
    """Imitation loss per member against environment steps; "" without rows."""
    lines = _series(metrics, "imitate", "env_steps", "loss")
    if not lines:
        return ""
    positive = all(y > 0 for points in lines.values() for _, y in points)
    with canvas.draw("loss", 560, 340, left=64, bottom=48, top=34, right=118) as (figure, axes):
        if positive:
            axes.set_yscale("log")
            canvas.plain_log_y(axes)
        ends = _curves(axes, lines, marker=None)
        _teacher_driven(axes, metrics)
        _end_labels(axes, ends)
        axes.set_title("imitation loss", loc="left", fontsize=canvas.SMALL, color=C["muted"], pad=14)
        _count_steps(axes)
        return canvas.finish(figure, "loss", "Imitation loss of each member against environment steps")


def race_curves(result: RunResult, metrics: Sequence[Row]) -> str:
    """Mean return in each race against environment steps, the teacher as a line; "" without rows."""
    lines = _series(metrics, "race", "env_steps", "return_mean")
    if not lines:
        return ""
    with canvas.draw("race", 560, 340, left=64, bottom=48, top=34, right=118) as (figure, axes):
        ends = _curves(axes, lines, marker="o")
        _levels(axes, result)
        _end_labels(axes, ends)
        axes.set_title("mean return in the races", loc="left", fontsize=canvas.SMALL, color=C["muted"], pad=14)
        _count_steps(axes)
        axes.yaxis.set_major_formatter(lambda value, _: words.number(value))
        return canvas.finish(figure, "race", "Mean return of each member in the races against environment steps")


def polish_curves(result: RunResult, metrics: Sequence[Row]) -> str:
    """Mean return while polishing against generations; "" where nothing was polished."""
    lines = _series(metrics, "polish", "generation", "return_mean")
    if not lines:
        return ""
    with canvas.draw("polish", 560, 340, left=64, bottom=48, top=34, right=118) as (figure, axes):
        ends = _curves(axes, lines, marker="o")
        _levels(axes, result)
        _end_labels(axes, ends)
        axes.set_title("mean return while polishing", loc="left", fontsize=canvas.SMALL, color=C["muted"], pad=14)
        axes.set_xlabel("generation", color=C["muted"])
        canvas.whole_ticks(axes)
        axes.yaxis.set_major_formatter(lambda value, _: words.number(value))
        return canvas.finish(figure, "polish", "Mean return of each polished member against generations")


def _levels(axes: Axes, result: RunResult) -> None:
    """The teacher's return always, that of random play where it lies among the students'."""
    lowest = axes.get_ylim()[0]
    for name, key, colour in (("teacher", result.mode, "ink"), ("random", "random", "muted")):
        known = key in result.evaluations and math.isfinite(result.evaluations[key].mean)
        if known and ((level := result.evaluations[key].mean) > lowest or name == "teacher"):
            axes.axhline(
                level, color=C[colour], linewidth=1.0, linestyle="-" if name == "teacher" else (0, (1, 2)), zorder=1
            )
            axes.annotate(
                name, (0.0, level), xycoords=("axes fraction", "data"), xytext=(4, 3), textcoords="offset points",
                fontsize=canvas.SMALL, color=C[colour],
            )  # fmt: skip
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, top + 0.05 * (top - bottom))  # room for the word above the teacher's line


def _series(metrics: Sequence[Row], stage: str, x: str, y: str) -> dict[str, list[tuple[float, float]]]:
    """Points per member, in the order of the file; rows without the numbers are left out."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in metrics:
        if row.get("stage") == stage and canvas.has_number(row, x) and canvas.has_number(row, y):
            lines.setdefault(str(row.get("member", "")), []).append((float(row[x]), float(row[y])))
    return lines


def _curves(axes: Axes, lines: Mapping[str, Sequence[tuple[float, float]]], marker: str | None) -> Ends:
    """One line per member, one colour per shape; where each shape's longest line ends, and its colour."""
    shapes = list(dict.fromkeys(_shape(name) for name in lines))
    colour = {s: C[svg.SERIES[i % len(svg.SERIES)]] for i, s in enumerate(shapes)}
    dashes = {s: "-" if i < len(svg.SERIES) else (0, (4, 2)) for i, s in enumerate(shapes)}
    leading = {s: max((n for n in lines if _shape(n) == s), key=lambda n: lines[n][-1][0]) for s in shapes}
    for name, points in lines.items():
        shape, (xs, ys) = _shape(name), zip(*points, strict=True)
        leads = leading[shape] == name  # the seed that lasted; its siblings stay in the background
        axes.plot(
            xs, ys, color=colour[shape], linestyle=dashes[shape], linewidth=1.7 if leads else 1.0, marker=marker if leads else None,
            markersize=4.5, alpha=1.0 if leads else 0.35, zorder=3 if leads else 2,
        )  # fmt: skip
    return {s: (lines[leading[s]][-1][1], colour[s]) for s in shapes}


def _shape(member: str) -> str:
    return re.sub(r"-s\d+$", "", member)


def _end_labels(axes: Axes, ends: Ends) -> None:
    """Names right of the axes, pushed apart until none covers another."""
    gap = canvas.SMALL + 3
    axes.get_ylim()  # limits are computed late: without this the transform is that of empty axes
    bottom, top = axes.bbox.y0 + 4, axes.bbox.y1 - 4
    wanted = sorted(
        (min(max(float(axes.transData.transform((1, y))[1]), bottom), top), s) for s, (y, _) in ends.items()
    )
    heights = _apart([y for y, _ in wanted], gap, bottom, top)
    for height, (_, shape) in zip(heights, wanted, strict=True):
        y = (height - axes.bbox.y0) / axes.bbox.height
        axes.text(
            1.02,
            y,
            canvas.short(shape, 15),
            transform=axes.transAxes,
            va="center",
            fontsize=canvas.SMALL,
            color=ends[shape][1],
        )


def _apart(heights: Sequence[float], gap: float, bottom: float, top: float) -> list[float]:
    """Sorted heights moved until neighbours are `gap` apart, kept inside [bottom, top] where they all fit."""
    gap = min(gap, (top - bottom) / max(len(heights) - 1, 1))
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    limit = top
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - gap
    return placed


def _teacher_driven(axes: Axes, metrics: Sequence[Row]) -> None:
    """A band over the rounds that the teacher drove, where students drove later ones."""
    driven = [
        float(r["env_steps"]) for r in metrics if r.get("driver") == "teacher" and canvas.has_number(r, "env_steps")
    ]
    others = [r for r in metrics if r.get("driver") not in (None, "teacher")]
    if driven and others:
        axes.axvspan(axes.get_xlim()[0], max(driven), color=C["line"], alpha=0.4, linewidth=0, zorder=0)
        axes.margins(x=0)
        axes.annotate(
            "← the teacher drives", (max(driven), 0.0), xycoords=("data", "axes fraction"), xytext=(4, 6),
            textcoords="offset points", ha="left", fontsize=canvas.SMALL - 1, color=C["muted"],
        )  # fmt: skip


def _count_steps(axes: Axes) -> None:
    axes.set_xlabel("environment steps collected", color=C["muted"])
    axes.locator_params(axis="x", nbins=5)  # millions in digits have room beside each other
    axes.xaxis.set_major_formatter(lambda value, _: words.number(value))
