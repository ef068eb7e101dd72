"""Which numbers of the observation decide the action: shares of influence over visited states.

The influence of number i in a state is |f(x + s_i e_i) - f(x - s_i e_i)| / 2, where s_i is half its standard deviation
over the visited states and f is what decides there: the greedy action's lead over the runner-up where actions are
chosen (of several choices their sum), the executed action in units of its range where they are continuous. That is a
central difference of the gradient-times-spread saliency (Simonyan et al. 2014), exact for linear policies; its finite
step sees the thresholds of trees and of whole-number layers, whose gradients are zero. Pictures have maps: `occlusion`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from limbeck import distributions
from limbeck.contracts import Floats, Head, State
from limbeck.proof.eprocess import Reals
from limbeck.runtimes.numpy import NumpyPolicy

STEP = 0.5  # standard deviations
MOST_NUMBERS = 512  # of an observation beside its pictures
MOST_ROWS = 256
SHOWN = 16  # shares that are kept


@dataclass(frozen=True)
class Rows:
    """Visited states in the order they were lived."""

    flat: Floats  # [N, O] the view's keys and indices applied
    first: NDArray[np.bool_]  # [N] begins an episode
    masks: NDArray[np.bool_] | None = None  # [N, W] actions that are allowed

    def first_of(self, count: int) -> Rows:
        """The first rows alone."""
        return self._at(np.arange(min(count, len(self.flat))))

    def spread_over(self, count: int) -> Rows:
        """So many rows, evenly taken: for policies without memory."""
        return self._at(np.unique(np.linspace(0, len(self.flat) - 1, min(count, len(self.flat))).astype(np.int64)))

    def _at(self, rows: NDArray[np.int64]) -> Rows:
        return Rows(self.flat[rows], self.first[rows], None if self.masks is None else self.masks[rows])


def saliency(
    policy: NumpyPolicy, rows: Rows, names: Sequence[str], places: NDArray[np.int64] | None = None
) -> dict[str, float]:
    """Shares of influence by name, largest first, the SHOWN largest; {} for more than MOST_NUMBERS numbers.

    places: [n] the numbers of the flat observation that are asked about, all of them for None: those of no picture
    (`occlusion.numbers`). The sum over all of them is 1; {} where nothing moves the action.
    """
    asked = np.arange(rows.flat.shape[1]) if places is None else places
    if not 0 < len(asked) <= MOST_NUMBERS or not len(rows.flat):
        return {}
    few = rows.first_of(MOST_ROWS)
    step = (STEP * few.flat.astype(np.float64).std(axis=0)).astype(np.float32)
    moves = np.zeros((len(asked), few.flat.shape[1]), np.float32)
    moves[np.arange(len(asked)), asked] = step[asked]
    both = np.concatenate([moves, -moves])
    found = influences(policy, few, lambda state: [state + both], _central)
    total = found.sum()
    if not total > 0:
        return {}
    order = np.argsort(-found, kind="stable")[:SHOWN]
    return {names[asked[i]]: float(found[i] / total) for i in order if found[i] > 0}


def _central(said: Reals) -> Reals:
    """[n] half the differences between n answers moved up and n moved down, behind the true one."""
    count = len(said) // 2
    return np.asarray(np.abs(said[1 : count + 1] - said[count + 1 :]).sum(axis=1) / 2)


def influences(
    policy: NumpyPolicy, rows: Rows, changed: Callable[[Floats], Iterable[Floats]], measured: Callable[[Reals], Reals]
) -> Reals:
    """[n] mean influence, in units of f. `changed` makes M other observations of a state [O], in blocks [M_i, O] that
    are asked one after the other, `measured` n numbers of what decides [1 + M, F] in the true one and in these. The
    memory follows the true observations, and a history's older frames stay: what changes is the newest one."""
    total: Reals = np.zeros(1)
    state = policy.initial_state(1)
    for row, (seen, begins) in enumerate(zip(rows.flat, rows.first, strict=True)):
        allowed = None if rows.masks is None else rows.masks[row : row + 1]
        said: list[Floats] = []
        after: State = {}
        for block in changed(seen):
            many = block if said else np.concatenate([seen[None], block])
            mask = None if allowed is None else np.repeat(allowed, len(many), axis=0)
            output = policy.on_flat(
                many.astype(np.float32, copy=False), _repeated(state, len(many)), np.full(len(many), begins), mask
            )
            after = after if said else {key: value[:1] for key, value in output.state.items()}
            said.append(output.params)
        state, total = after, total + measured(deciding(policy.head, np.concatenate(said)))
    return np.asarray(total / len(rows.flat))


def deciding(head: Head, params: Floats) -> Reals:
    """[B, F] what decides in the state of the first row: leads of its greedy actions, or actions in units of range."""
    if head.discrete:
        return leads(head, params, params[:1])
    acted = distributions.act(head, params).reshape(len(params), -1).astype(np.float64)
    low, high = (bound.astype(np.float64) for bound in distributions.bounds(head))
    finite = np.isfinite(low) & np.isfinite(high) & (high > low)
    return acted / np.where(finite, np.where(finite, high, 1) - np.where(finite, low, 0), 1.0)


def leads(head: Head, params: Floats, reference: Floats) -> Reals:
    """[B, F] how far each choice's best action in `reference` [1, W] leads its runner-up there, by `params` [B, W]."""
    if head.kind == "bernoulli":
        return np.where(reference > 0, 1.0, -1.0) * params.astype(np.float64)
    columns = []
    for group, chosen in zip(distributions.groups(head, params), distributions.groups(head, reference), strict=True):
        order = np.argsort(-chosen[0], kind="stable")
        wide = np.maximum(group.astype(np.float64), -1e30)  # forbidden actions are minus infinity
        rival = order[1] if len(order) > 1 else order[0]
        columns.append(wide[:, order[0]] - wide[:, rival])
    return np.stack(columns, axis=1)


def _repeated(state: State, count: int) -> State:
    return {key: np.repeat(value, count, axis=0) for key, value in state.items()}
