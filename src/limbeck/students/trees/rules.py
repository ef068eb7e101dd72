"""Linear controllers of a few numbers, found in weighted rows.

Three searches feed one ranking. Two actions: all sums of few inputs with weights of -3 ... 3 (a rule) or -1 and 1
(ternary) on raw numbers, without a threshold or with the best one, as far as they can be counted. Any actions: a
weighted regression whose numbers are taken away one by one, the least salient first (optimal brain damage, LeCun et
al. 1990). Ternary: greedy, the number that helps most comes next. The ranking is the weighted loss on the rows, 0-1
for actions from a list; what it cannot see, return, is left to a race.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from limbeck import distributions
from limbeck.contracts import Floats, Head, Sparse
from limbeck.students.trees.targets import Examples, row_of

LARGEST_WHOLE = 3  # weights of counted rules
MOST_SUMS = 20_000  # that are counted out
ROWS = 2000  # the search looks at, drawn evenly from those given
RIDGE = 1e-4
STEPS_DOWN = 0.15  # share of the numbers that goes between two fits


@dataclass(frozen=True)
class Found:
    """A controller and its weighted loss on the rows."""

    loss: float
    layer: Sparse


def search(examples: Examples, numbers: int, ternary: bool, keep: int) -> list[Found]:
    """At most `keep` different controllers of at most `numbers` numbers, the best on the rows first; among them the
    best of every size as far as `keep` allows, for fewer numbers may do as well in play."""
    few = _thinned(examples)
    found: list[Found] = []
    if two_actions(few.head):
        found += _counted(few, numbers, 1 if ternary else LARGEST_WHOLE, keep)
    found += [_judged(few, layer) for layer in (_greedy(few, numbers) if ternary else _regressed(few, numbers))]
    ranked = sorted(found, key=lambda one: (round(one.loss, 9), one.layer.parameters, _key(one.layer)))
    unique = {_key(one.layer): one for one in reversed(ranked)}
    ranked = [one for one in ranked if unique[_key(one.layer)] is one]
    shortest = {one.layer.parameters: one for one in reversed(ranked)}  # the best of every size goes on
    order = sorted(range(len(ranked)), key=lambda i: (shortest[ranked[i].layer.parameters] is not ranked[i], i))
    return [ranked[i] for i in sorted({0, *order[: keep - 1]} if keep > 1 else {0})]


def two_actions(head: Head) -> bool:
    """One choice between two: a single sum decides."""
    return head.kind in ("categorical", "q") and head.sizes == (2,)


def loss_of(examples: Examples, rows: Floats) -> float:
    """Weighted share of rows [N, W] that answer wrongly; mean squared error of continuous ones, in their spreads."""
    head = examples.head
    if head.discrete:
        said = distributions.said(head, rows).reshape(len(rows), -1)
        wanted = distributions.said(head, row_of(examples, examples.y)).reshape(len(rows), -1)
        wrong = (said != wanted).mean(axis=1)
    else:
        n = sum(head.sizes)
        executed = np.tanh(rows[:, :n]) if head.kind in ("squashed", "tanh") else rows[:, :n]
        if head.kind not in ("squashed", "tanh"):
            executed = np.clip(executed, *distributions.bounds(head))
        error = (executed - examples.centre[:n]) / examples.spread[:n] - examples.y[:, :n]
        wrong = (error**2).mean(axis=1)
    return float(np.average(wrong, weights=examples.weight))


def layer_from(weight: NDArray[np.float64], bias: NDArray[np.float64]) -> Sparse:
    """[I, W] weights and [W] biases as a layer of those that are not zero."""
    reads = tuple(tuple(np.flatnonzero(column).tolist()) for column in weight.T)
    stored = np.concatenate([column[list(places)] for column, places in zip(weight.T, reads, strict=True)])
    biased = np.flatnonzero(bias)
    return Sparse(
        stored.astype(np.float32), bias[biased].astype(np.float32), reads, tuple(biased.tolist()), len(weight)
    )


def _key(layer: Sparse) -> tuple[object, ...]:
    return layer.reads, layer.weight.tobytes(), layer.biased, layer.bias.tobytes()


def _judged(examples: Examples, layer: Sparse) -> Found:
    weight = np.zeros((layer.width, layer.outputs), np.float32)
    at = 0
    for o, places in enumerate(layer.reads):
        weight[list(places), o] = layer.weight[at : at + len(places)]
        at += len(places)
    return Found(loss_of(examples, examples.x @ weight + layer.offset), layer)


def _thinned(examples: Examples) -> Examples:
    if len(examples) <= ROWS:
        return examples
    rows = np.linspace(0, len(examples) - 1, ROWS).astype(np.int64)
    return replace(examples, x=examples.x[rows], y=examples.y[rows], weight=examples.weight[rows])


# ---------------------------------------------------------------- counted out


def _counted(examples: Examples, numbers: int, largest: int, keep: int) -> list[Found]:
    """Sums of whole weights on raw numbers; each alone, and with its best threshold where one number is left for it."""
    wanted, weight = examples.y[:, 1] > 0.5, (examples.weight / examples.weight.sum()).astype(np.float64)
    reached = _ranked_inputs(examples)
    found: list[Found] = []
    for terms in range(1, min(numbers, len(reached)) + 1):
        grid = np.array(list(_wholes(terms, largest)), np.float32).T  # [terms, G]
        afford = max(MOST_SUMS // max(grid.shape[1], 1), 1)
        if grid.size == 0 or grid.shape[1] > MOST_SUMS:
            break
        usable = len(reached)
        while usable > terms and math.comb(usable, terms) > afford:
            usable -= 1
        for places in itertools.combinations(sorted(reached[:usable]), terms):
            sums = examples.x[:, places] @ grid  # [N, G]
            wrong = weight @ ((sums > 0) != wanted[:, None])
            for g in np.argsort(wrong, kind="stable")[: max(2, keep // 4)]:
                found.append(Found(float(wrong[g]), _two(examples, places, grid[:, g], 0.0)))
                if terms < numbers:
                    loss, threshold = _best_threshold(sums[:, g], wanted, weight)
                    found.append(Found(loss, _two(examples, places, grid[:, g], threshold)))
    return sorted(found, key=lambda one: one.loss)[: 4 * keep]


def _wholes(terms: int, largest: int) -> Iterator[tuple[int, ...]]:
    """Tuples of whole numbers other than zero without a common divisor."""
    values = [v for v in range(-largest, largest + 1) if v]
    for chosen in itertools.product(values, repeat=terms):
        if math.gcd(*chosen) == 1:
            yield chosen


def _ranked_inputs(examples: Examples) -> list[int]:
    """Inputs that vary, those first that a regression on all of them leans on."""
    weight, _ = _fit(examples, np.ones((examples.x.shape[1] + 1, examples.y.shape[1]), bool))
    size = np.abs(weight).max(axis=1)
    varies = np.flatnonzero(np.ptp(examples.x, axis=0) > 0)
    return [int(i) for i in varies[np.argsort(-size[varies], kind="stable")]]


def _best_threshold(
    sums: Floats, wanted: NDArray[np.bool_], weight: NDArray[np.float64] | Floats
) -> tuple[float, float]:
    """(weighted loss, t) of the best rule sums > t."""
    order = np.argsort(sums, kind="stable")
    signed = np.where(wanted[order], weight[order], -weight[order]).astype(np.float64)
    losses = float(weight[~wanted].sum()) + np.concatenate([[0.0], np.cumsum(signed)])  # the first n rows answer no
    ordered = sums[order].astype(np.float64)
    allowed = np.concatenate([[True], ordered[1:] > ordered[:-1], [True]])
    cut = int(np.argmin(np.where(allowed, losses, np.inf)))
    ends = np.concatenate([[ordered[0] - 1], (ordered[1:] + ordered[:-1]) / 2, [ordered[-1]]])
    return max(float(losses[cut]), 0.0), float(ends[cut])


def _two(examples: Examples, places: tuple[int, ...], weights: Floats, threshold: float) -> Sparse:
    """Action 1 where the sum is above the threshold."""
    weight = np.zeros((examples.x.shape[1], 2))
    weight[list(places), 1] = weights
    return layer_from(weight, np.array([0.0, -threshold]))


# ---------------------------------------------------------------- numbers taken away


def _regressed(examples: Examples, numbers: int) -> list[Sparse]:
    """A regression on everything, then fewer and fewer numbers, fitted again each time; the last is the answer.

    Softmax regression for lists, logistic for bits, least squares for continuous actions, on standardised inputs.
    What stands for the first of two actions is left out from the start: only the difference decides.
    """
    held = np.ones((examples.x.shape[1] + 1, examples.y.shape[1]), bool)
    held[:-1][np.ptp(examples.x, axis=0) == 0] = False
    if two_actions(examples.head):
        held[:, 0] = False
    weight, curvature = _fit(examples, held)
    while (left := int(held.sum())) > numbers:
        drop = min(max(1, int(STEPS_DOWN * left)), left - numbers)
        salience = np.where(held, weight**2 * curvature, np.inf)
        held.reshape(-1)[np.argsort(salience, axis=None, kind="stable")[:drop]] = False
        weight, curvature = _fit(examples, held, weight)
    raw = weight[:-1] / examples.scale[:, None].astype(np.float64)
    bias = weight[-1] - (raw * examples.mean[:, None] * held[:-1]).sum(axis=0)
    if (held[-1] | ~held[:-1].any(axis=0)).all():
        return [layer_from(raw * held[:-1], np.where(held[-1], bias, 0.0))]
    return [_through_zero(examples, held, weight)]


def _through_zero(examples: Examples, held: NDArray[np.bool_], start: NDArray[np.float64]) -> Sparse:
    """Outputs without a bias pass through zero in raw numbers, so they are fitted there."""
    about_zero = replace(examples, mean=np.zeros_like(examples.mean))
    weight, _ = _fit(about_zero, held, start)
    return layer_from(weight[:-1] / examples.scale[:, None].astype(np.float64), np.where(held[-1], weight[-1], 0.0))


def _fit(
    examples: Examples, held: NDArray[np.bool_], start: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[I + 1, W] weights on standardised inputs (last row: biases), zero where not `held`, and their curvatures."""
    from scipy.optimize import minimize

    z = ((examples.x - examples.mean) / examples.scale).astype(np.float64)
    z = np.concatenate([z, np.ones((len(z), 1))], axis=1)
    share = (examples.weight / examples.weight.sum()).astype(np.float64)[:, None]
    begin = np.zeros(held.shape) if start is None else start

    def objective(free: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weight = np.zeros(held.shape)
        weight[held] = free
        loss, slope, _ = _loss(examples, z @ weight)
        gradient = z.T @ (share * slope) + 2 * RIDGE * weight
        return float((share[:, 0] * loss).sum() + RIDGE * (weight**2).sum()), gradient[held]

    found = minimize(objective, begin[held], jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    weight = np.zeros(held.shape)
    weight[held] = found
    _, _, curved = _loss(examples, z @ weight)
    return weight, (z**2).T @ (share * curved)


def _loss(examples: Examples, rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Loss [N], and first and second derivative by the rows [N, W]."""
    head, y = examples.head, examples.y.astype(np.float64)
    if not head.discrete:
        wanted = row_of(examples, examples.y).astype(np.float64)
        spread = np.maximum(wanted.std(axis=0), 1e-6)
        error = (rows - wanted) / spread
        return 0.5 * (error**2).sum(axis=1), error / spread, np.ones_like(error) / spread**2
    if head.kind == "bernoulli":
        p = 1 / (1 + np.exp(-rows))
        return (np.logaddexp(0, rows) - y * rows).sum(axis=1), p - y, p * (1 - p)
    loss, parts = np.zeros(len(rows)), []
    for group, one in zip(np.split(rows, np.cumsum(head.sizes)[:-1], axis=1), _lists(head, y), strict=True):
        top = group.max(axis=1, keepdims=True)
        log_sum = top + np.log(np.exp(group - top).sum(axis=1, keepdims=True))
        loss += log_sum[:, 0] - (one * group).sum(axis=1)
        parts.append(np.exp(group - log_sum))
    p = np.concatenate(parts, axis=1)
    return loss, p - y, p * (1 - p)


def _lists(head: Head, y: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    return np.split(y, np.cumsum(head.sizes)[:-1], axis=1)


# ---------------------------------------------------------------- ternary


def _greedy(examples: Examples, numbers: int) -> list[Sparse]:
    """1 and -1, one number after another: the one after which the loss is least, as long as it falls."""
    width, says = examples.x.shape[1], examples.y.shape[1]
    weight, bias = np.zeros((width, says), np.float32), np.zeros(says, np.float32)
    rows, best = np.zeros((len(examples), says), np.float32), math.inf
    columns = np.concatenate([examples.x, np.ones((len(examples), 1), np.float32)], axis=1)
    places = [(i, o) for o in range(1 if two_actions(examples.head) else 0, says) for i in range(width + 1)]
    for _ in range(numbers):
        tried = []
        for i, o in places:
            if (bias[o] if i == width else weight[i, o]) != 0:
                continue
            for sign in (1.0, -1.0):
                rows[:, o] += np.float32(sign) * columns[:, i]
                tried.append((loss_of(examples, rows), i == width, i, o, sign))
                rows[:, o] -= np.float32(sign) * columns[:, i]
        if not tried or min(tried)[0] >= best:
            break
        best, _, i, o, sign = min(tried)
        rows[:, o] += np.float32(sign) * columns[:, i]
        (bias if i == width else weight[i])[o] = sign
    return [layer_from(weight.astype(np.float64), bias.astype(np.float64))]
