"""How good a policy is on a labelled set: accuracy, macro-F1 and losses on rows that nobody was trained on.

A return of 0.97 is an accuracy of 97 %, but classes differ in size and kind of mistake, so macro-F1 stands beside it,
both with 95 % intervals: Wilson's for a share of rows that are right (Wilson 1927), the percentile bootstrap over rows
for everything else (Efron 1979), whose draws depend on the run seed alone. Rows are the unit of both: the several
labels of one row are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck import distributions, objective, seeding
from limbeck.contracts import Array, Batch, Floats, Head, Policy, Rate
from limbeck.errors import InputError
from limbeck.objective import Term
from limbeck.proof.eprocess import Reals
from limbeck.tasks import DatasetTask
from limbeck.tasks.datasets import Part

LEVEL_Z = 1.959963984540054  # two-sided 95 % of a normal
RESAMPLES = 2000
CHUNK = 4096  # rows per call of a policy


@dataclass(frozen=True)
class Scores:
    """A policy's answers on one part of a labelled set."""

    accuracy: Rate  # share of labels right
    macro_f1: Rate  # mean over classes (or labels) of 2 TP / (2 TP + FP + FN)
    exact: Rate  # share of rows with every label right: the accuracy where there is one label per row


@dataclass(frozen=True)
class HeldOut:
    """Rows of one part, ready for losses: what the teacher and the task say about them."""

    inputs: Floats  # [N, ...] observations
    labels: Mapping[str, torch.Tensor]  # "params" [1, N, W], "hard" [1, N] or [1, N, L], "temperature" []
    head: Head  # the teacher's


# ---------------------------------------------------------------- metrics


def scores(predicted: Array, answers: Array, classes: int, run_seed: int = 0) -> Scores:
    """Accuracy and macro-F1 of predictions [N] against answers [N] in 0..classes-1, or [N, L] of 0 and 1 (classes ignored).

    A class that neither side mentions counts in no mean, as in scikit-learn without `labels`.
    """
    given, wanted = np.asarray(predicted), np.asarray(answers)
    if given.shape != wanted.shape or given.ndim not in (1, 2) or not len(given):
        raise InputError(
            f"predictions {given.shape} and answers {wanted.shape} do not fit. Allowed: both [N] or [N, L]."
        )
    right = (given == wanted).reshape(len(given), -1)
    exact = wilson(int(right.all(axis=1).sum()), len(given))
    accuracy = exact if given.ndim == 1 else _bootstrapped(right.mean(axis=1), float(right.mean()), run_seed)
    return Scores(accuracy, _macro_f1(_counts(given, wanted, classes), run_seed), exact)


def wilson(successes: int, rows: int) -> Rate:
    """A share with Wilson's score interval (Wilson 1927), which stays in 0..1 and is honest near both ends.

    >>> rate = wilson(97, 100)
    >>> round(rate.low, 4), round(rate.high, 4)
    (0.9155, 0.9897)
    """
    p, square = successes / rows, LEVEL_Z**2
    middle = (p + square / (2 * rows)) / (1 + square / rows)
    half = LEVEL_Z * math.sqrt(p * (1 - p) / rows + square / (4 * rows**2)) / (1 + square / rows)
    return Rate(p, max(0.0, middle - half), min(1.0, middle + half), rows, "wilson")


def f1(counts: NDArray[np.float64]) -> Reals:
    """[...] mean over classes of 2 TP / (2 TP + FP + FN) from counts [..., C, 3]; classes without any do not count."""
    hits, whole = 2 * counts[..., 0], 2 * counts[..., 0] + counts[..., 1] + counts[..., 2]
    present = whole > 0
    each = np.divide(hits, whole, out=np.zeros_like(hits), where=present)
    return each.sum(-1) / np.maximum(present.sum(-1), 1)


def _counts(given: Array, wanted: Array, classes: int) -> NDArray[np.float64]:
    """[N, C, 3] whether row n is a true positive, false positive, false negative of class c."""
    if given.ndim == 1:
        if max(int(given.max()), int(wanted.max())) >= classes or min(int(given.min()), int(wanted.min())) < 0:
            raise InputError(f"a class outside 0 to {classes - 1} among predictions or answers. Mend the labels.")
        given, wanted = (np.eye(classes, dtype=bool)[rows] for rows in (given, wanted))
    on, true = given.astype(bool), wanted.astype(bool)
    return np.stack([on & true, on & ~true, ~on & true], axis=-1).astype(np.float64)


def _macro_f1(counts: NDArray[np.float64], run_seed: int) -> Rate:
    rows, flat = len(counts), counts.reshape(len(counts), -1)
    drawn = np.array([f1((w @ flat).reshape(counts.shape[1:])) for w in _weights(rows, run_seed)])
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Rate(float(f1(counts.sum(axis=0))), float(low), float(high), rows, "bootstrap")


def _bootstrapped(values: Reals, mean: float, run_seed: int) -> Rate:
    drawn = np.array([w @ values for w in _weights(len(values), run_seed)]) / len(values)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Rate(mean, float(low), float(high), len(values), "bootstrap")


def _weights(rows: int, run_seed: int) -> Iterator[Reals]:
    """How often each row is drawn, resample after resample."""
    rng = seeding.generator(run_seed, "proof", RESAMPLES, rows)
    for _ in range(RESAMPLES):
        yield np.bincount(rng.integers(rows, size=rows), minlength=rows).astype(np.float64)


# ---------------------------------------------------------------- policies on a part of a set


def measure(policy: Policy, task: DatasetTask, part: Part = "test", run_seed: int = 0) -> Scores:
    """A policy's scores on all rows of a part, greedily."""
    rows = task.part(part)
    inputs, answers = task.inputs[rows], task.labels[rows]
    said = distributions.said(policy.head, _answers(policy, inputs))
    classes = int(policy.head.sizes[0])
    return scores(said.reshape(answers.shape), answers, classes, run_seed)


def held_out(
    teacher: Policy, task: DatasetTask, part: Part = "validation", scalars: Mapping[str, torch.Tensor] | None = None
) -> HeldOut:
    """A part's rows with the teacher's labels, in the form that losses take, and the losses' constants; made once per run."""
    rows = task.part(part)
    inputs = task.inputs[rows]
    params = distributions.canonical(teacher.head, _answers(teacher, inputs))[0]
    labels = {
        "params": torch.from_numpy(params)[None],
        "hard": torch.from_numpy(task.labels[rows])[None],
        "temperature": torch.tensor(1.0),
        **(scalars or {}),
    }
    return HeldOut(inputs, labels, teacher.head)


def losses_on(student: Policy, held: HeldOut, terms: Sequence[Term]) -> dict[str, float]:
    """The weighted objective and its unweighted parts on held rows: "loss", "kd_loss" and "hard_loss" (means over rows).

    Where several losses imitate the teacher, each goes by its own name, such as "js_loss". A part that the objective does not weigh is not computed: no "hard_loss" where lambda is 0, no "kd_loss" where it is 1.
    """
    said = torch.from_numpy(_answers(student, held.inputs))[None, None]
    batch = Batch("held", said[0], None, None, held.labels)
    named = {"loss": float(objective.evaluate(terms, said, batch, held.head))}
    imitating = [term.name for term in terms if term.name != "cross_entropy"]
    for term in terms:
        part = objective.evaluate((Term(term.name, 1.0),), said, batch, held.head)
        kind = "kd" if imitating == [term.name] else term.name
        named["hard_loss" if term.name == "cross_entropy" else f"{kind}_loss"] = float(part)
    return named


def _answers(policy: Policy, inputs: Floats) -> Floats:
    """[N, W] rows, every one the first of an episode of its own."""
    parts = [inputs[i : i + CHUNK] for i in range(0, len(inputs), CHUNK)]
    said = [policy(rows, policy.initial_state(len(rows)), np.ones(len(rows), bool)).params for rows in parts]
    return np.concatenate(said)
