"""Which numbers of the observation decide the action: shares of influence over visited states.

The influence of number i in a state is |f(x + s_i e_i) - f(x - s_i e_i)| / 2, where s_i is half its standard deviation
over the visited states and f is what decides there: the greedy action's lead over the runner-up where actions are
chosen (of several choices their sum), the executed action in units of its range where they are continuous. That is a
central difference of the gradient-times-spread saliency (Simonyan et al. 2014), exact for linear policies; its finite
step sees the thresholds of trees and of whole-number layers, whose gradients are zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from limbeck import distributions
from limbeck.contracts import Floats, Head, State
from limbeck.proof.eprocess import Reals
from limbeck.runtimes.numpy import NumpyPolicy

STEP = 0.5  # standard deviations
MOST_NUMBERS = 512  # of an observation: longer ones are pictures
MOST_ROWS = 256
SHOWN = 16  # shares that are kept


def saliency(
    policy: NumpyPolicy, flat: Floats, first: NDArray[np.bool_], names: Sequence[str],
    masks: NDArray[np.bool_] | None = None,
) -> dict[str, float]:  # fmt: skip
    """Shares of influence by name, largest first, the SHOWN largest; {} for more than MOST_NUMBERS numbers.

    flat: [N, O] observations in the order they were lived, the view's keys and indices applied; masks: [N, W].
    The sum over all numbers is 1; {} where nothing moves the action.
    """
    if flat.shape[1] > MOST_NUMBERS or not len(flat):
        return {}
    found = influences(policy, flat[:MOST_ROWS], first[:MOST_ROWS], masks)
    total = found.sum()
    if not total > 0:
        return {}
    order = np.argsort(-found, kind="stable")[:SHOWN]
    return {names[i]: float(found[i] / total) for i in order if found[i] > 0}


def influences(
    policy: NumpyPolicy, flat: Floats, first: NDArray[np.bool_], masks: NDArray[np.bool_] | None = None
) -> Reals:
    """[O] mean influence of every number, in units of f. The memory follows the true observations, and a history's
    older frames stay: what is moved is the newest one."""
    step = (STEP * flat.astype(np.float64).std(axis=0)).astype(np.float32)
    moved = np.concatenate([np.diag(step), -np.diag(step)])  # [2 O, O]
    count, total = flat.shape[1], np.zeros(flat.shape[1])
    state = policy.initial_state(1)
    for row, (seen, begins) in enumerate(zip(flat, first, strict=True)):
        many = np.concatenate([seen[None], seen + moved])
        fresh = np.full(len(many), begins)
        mask = None if masks is None else np.repeat(masks[row : row + 1], len(many), axis=0)
        output = policy.on_flat(many, _repeated(state, len(many)), fresh, mask)
        state = {key: value[:1] for key, value in output.state.items()}
        said = deciding(policy.head, output.params)
        total += np.abs(said[1 : count + 1] - said[count + 1 :]).sum(axis=1) / 2
    return total / len(flat)


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
