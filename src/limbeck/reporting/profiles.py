"""Performance profiles of a proof's episodes: the share that returns at least so much (Dolan & Moré 2002; in RL Agarwal
et al. 2021), on the scale where random play is 0 and the teacher's mean is 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from limbeck.contracts import MemberReport, Proof, RunResult
from limbeck.reporting import canvas, svg, words
from limbeck.reporting.canvas import C

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Reals = NDArray[np.float64]

ALPHA = 0.05
MOST_POINTS = 200  # of a curve
MOST_CURVES = len(svg.SERIES)  # of members
NARROWEST, WIDEST = (0.8, 1.1), (-0.5, 1.6)  # of the axis


def profile(result: RunResult) -> str:
    """The teacher, the headline's member with its band, and the other members that played; "" where none played."""
    shown = drawn(result)
    if not shown:
        return ""
    proofs = [member.proof for member in shown if member.proof is not None]
    taught, scores = scaled(proofs[0], proofs[0].teacher_returns), [scaled(one, one.student_returns) for one in proofs]
    low, high = _limits([taught, *scores])
    with canvas.draw("profile", 660, 320, left=58, bottom=48, top=14, right=168) as (figure, axes):
        for number in reversed(range(len(scores))):  # the headline's on top
            colour = C[svg.SERIES[number]]
            xs, shares = _curve(axes, scores[number], (low, high), colour, 1.1 if number else 2.0)
            if not number:
                off = band(len(scores[0]))
                axes.fill_between(xs, np.maximum(shares - off, 0), np.minimum(shares + off, 1), step="pre", color=colour, alpha=0.16, linewidth=0)  # fmt: skip
        _curve(axes, taught, (low, high), C["ink"], 1.6)
        _names(axes, ["teacher", *(member.name for member in shown)], [C["ink"], *(C[s] for s in svg.SERIES)])
        axes.set_xlim(low, high)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("return: 0 % random play, 100 % the teacher's mean", color=C["muted"])
        axes.set_ylabel("episodes that return at least that", color=C["muted"])
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: words.percent(value))
        return canvas.finish(figure, "profile", _said(shown[0].name, scores[0], taught))


def drawn(result: RunResult) -> list[MemberReport]:
    """The members whose curves are drawn: the headline's, then the others, largest first."""
    headline = words.smallest_proved(result) or words.closest(result)
    able = [m for m in result.members if m.proof is not None and len(scaled(m.proof, m.proof.student_returns))]
    first = [member for member in able if headline is not None and member is headline[0]]
    return [*first, *(member for member in able if member not in first)][:MOST_CURVES]


def scaled(proof: Proof, returns: Sequence[float]) -> Reals:
    """Finite returns as shares of the teacher's gain in that proof; none where the teacher gained nothing.

    Both means are those of the episodes themselves; `band` holds for every return at once, so it holds for those that
    this scale picks.
    """
    floor, ceiling = (
        float(np.mean(column)) if len(column) else math.nan for column in (proof.random_returns, proof.teacher_returns)
    )
    if not ceiling - floor > 0 or not math.isfinite(ceiling - floor):
        return np.zeros(0)
    values = np.asarray(returns, np.float64)
    return np.asarray((values[np.isfinite(values)] - floor) / (ceiling - floor))


def at_least(scores: Reals, thresholds: Reals) -> Reals:
    """Share of the scores that reach each threshold.

    >>> at_least(np.array([0.0, 1.0, 1.0, 2.0]), np.array([0.0, 1.0, 1.5, 3.0])).tolist()
    [1.0, 0.75, 0.25, 0.0]
    """
    below = np.searchsorted(np.sort(scores), thresholds, side="left")
    return np.asarray(1 - below / len(scores))


def band(episodes: int) -> float:
    """Half the width of the 95 % band of a profile, for all thresholds at once (Dvoretzky, Kiefer & Wolfowitz 1956, with
    the constant of Massart 1990).

    >>> round(band(200), 3)
    0.096
    """
    return math.sqrt(math.log(2 / ALPHA) / (2 * episodes))


def _curve(axes: Axes, scores: Reals, limits: tuple[float, float], colour: str, width: float) -> tuple[Reals, Reals]:
    """Steps that fall after each score; where there are many, on a grid."""
    inside = np.unique(scores[(scores > limits[0]) & (scores < limits[1])])
    if len(inside) > MOST_POINTS:
        inside = np.linspace(*limits, MOST_POINTS)
    xs = np.concatenate([[limits[0]], inside, [limits[1]]])
    shares = at_least(scores, xs)
    axes.plot(xs, shares, color=colour, linewidth=width, drawstyle="steps-pre")
    return xs, shares


def _limits(curves: Sequence[Reals]) -> tuple[float, float]:
    low, high = min(float(c.min()) for c in curves), max(float(c.max()) for c in curves)
    low, high = min(low, NARROWEST[0]), max(high, NARROWEST[1])
    return max(low - 0.02, WIDEST[0]), min(high + 0.02, WIDEST[1])


def _names(axes: Axes, names: Sequence[str], colours: Sequence[str]) -> None:
    """Right of the axes, one below the other, in the colours of their curves."""
    for number, (name, colour) in enumerate(zip(names, colours, strict=False)):
        text = canvas.short(name, 18) + " (band)" * (number == 1)
        axes.annotate(text, (1, 1), xycoords="axes fraction", xytext=(12, -10 - 18 * number), textcoords="offset points",
                      va="center", fontsize=canvas.SMALL, color=colour)  # fmt: skip


def _said(name: str, scores: Reals, taught: Reals) -> str:
    mean = np.ones(1)
    student, teacher = (words.percent(float(at_least(curve, mean)[0])) for curve in (scores, taught))
    return (
        f"Performance profiles: {words.public(name, 60)} returns at least the teacher's mean in {student} of its "
        f"{words.plural(len(scores), 'episode')}, the teacher itself in {teacher}"
    )
