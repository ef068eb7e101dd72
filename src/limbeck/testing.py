"""The contracts that plug-ins must pass, for this project's own and for yours.

`check_loss` holds the laws every loss obeys, `check_policy` what rollout, proof and exporters rely on.
Each raises AssertionError with a sentence that says which law was broken and by how much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from limbeck import distributions, objective, seeding, tasks
from limbeck.contracts import Batch, Floats, Head, LossEntry, Observation, Policy
from limbeck.losses import AUTO, LOSSES

Labels = Mapping[str, torch.Tensor]
Shape = tuple[int, ...]
LAYER, FEATURE = (6,), (6,)  # one row of the student's and of the teacher's layer where a loss reads them
SOURCE = "net"  # the teacher's layer's name


# ---------------------------------------------------------------- losses


def example_labels(head: Head, rows: int = 64, seed: int = 0, feature: Shape = FEATURE) -> dict[str, torch.Tensor]:
    """Plausible labels of every kind for a head, [rows, ...]: inside the action bounds and the pre-tanh limit, so that
    equality is reachable. `feature`: the shape of one row of a teacher's layer."""
    rng = seeding.generator(seed, "train", rows)
    params = _example_params(head, rng, rows)
    hard = rng.integers(head.sizes[0], size=rows)
    if head.kind in ("bernoulli", "multicategorical"):
        most = (2,) * sum(head.sizes) if head.kind == "bernoulli" else head.sizes
        hard = rng.integers(most, size=(rows, len(most)))
    found: dict[str, Any] = {"params": params, "hard": hard, "feature": rng.normal(size=(rows, *feature))}
    found |= _example_knowledge(head, rng, params)
    scalars = {"temperature": 0.7, "gap": 1.7, "beta": 0.3, "gap_power": 0.5, "dkd_beta": 2.0}
    scalars |= {"value_mean": 3.0, "value_scale": 5.0, "critic_scale": 0.05}
    return {k: _float32(torch.as_tensor(v)) for k, v in (found | scalars).items()}


def _example_params(head: Head, rng: np.random.Generator, rows: int) -> Floats:
    n = sum(head.sizes)
    if head.discrete:
        params = rng.normal(size=(rows, n)) * 2
    else:
        low, high = (np.nan_to_num(b, posinf=2.0, neginf=-2.0) for b in distributions.bounds(head))
        if head.kind in ("squashed", "tanh"):
            low, high = np.full(n, -2.0), np.full(n, 2.0)
        params = low + (high - low) * rng.random((rows, n))
        if head.width == 2 * n:
            params = np.concatenate([params, rng.uniform(-2.0, 0.0, (rows, n))], axis=1)
    return distributions.canonical(head, params.astype(np.float32))[0]


def _example_knowledge(head: Head, rng: np.random.Generator, params: Floats) -> dict[str, Any]:
    rows, n = len(params), sum(head.sizes)
    chosen = rng.integers(n, size=rows)
    return {
        "advantage": params - params.max(axis=1, keepdims=True),
        "value": rng.normal(size=rows) * 5 + 3,
        "target": rng.normal(size=rows) * 5,
        "action": chosen,
        "known": (rng.random(rows) < 0.8) | (np.arange(rows) < 4),
        "said": chosen,
        "log_behaviour": np.full(rows, -np.log(n)),
        "to_go": rng.normal(size=rows) * 3,
        "critic_grad": rng.normal(size=(rows, n)),
        "critic_hess": -rng.random((rows, n)),
    }


def _float32(column: torch.Tensor) -> torch.Tensor:
    return column if column.dtype == torch.int64 else column.float()


def matching(entry: LossEntry, head: Head, labels: Labels) -> torch.Tensor:
    """The student rows that say exactly what the teacher says, in the form this loss wants."""
    if entry.reads == "hidden":
        feature = labels["feature"]
        return (feature.movedim(1, -1) if feature.ndim == 4 else feature).flatten(1)
    params = labels["params"]
    if {"q", "regret"} <= entry.needs:
        return params / labels["gap"]
    if entry.needs == frozenset({"q"}) or (head.kind == "q" and "regret" in entry.needs):
        return params / labels["temperature"]
    if "action" in entry.needs:
        return params[:, : sum(head.sizes)]
    return params


def evaluated(
    entry: LossEntry,
    head: Head,
    labels: Labels,
    student: torch.Tensor,
    own: Mapping[str, torch.Tensor] | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """A loss on rows [N, W] or those of members [K, N, W], as the objective would call it -> [N] or [K, N]; of a loss of
    the whole batch one number [] or [K]. `own`: its parameters, alike for all members; `mask` [N], for batch losses."""
    if entry.kind == "point" and entry.reads == "params":
        return entry.fn(student, labels, head)
    members = student if student.ndim == 3 else student[None]
    long = {k: v[None] if v.ndim else v for k, v in labels.items()}  # [T = 1, N, ...]
    each = {k: v.expand(len(members), *v.shape) for k, v in (own or {}).items()}
    arguments = (members[:, None], long, head) if entry.owns is None else (members[:, None], long, head, each)
    if entry.kind == "batch":
        whole = student.new_ones(members.shape[1]) if mask is None else mask
        value = entry.fn(*arguments, whole[None])
    else:
        value = entry.fn(*arguments)[:, 0]
    return value if student.ndim == 3 else value[0]


def check_loss(entry: LossEntry, head: Head, seed: int = 0, layer: Shape = LAYER, feature: Shape = FEATURE) -> None:
    """All laws for one row of the table LOSSES on one teacher head.

    Of losses on hidden layers `layer` is the shape of one row of the student's, `feature` that of the teacher's.
    """
    labels = example_labels(head, seed=seed, feature=feature)
    rng = seeding.generator(seed, "train", 1)
    own = {}
    if entry.owns is not None:
        own = {k: torch.from_numpy(rng.normal(size=s) * 0.3).float() for k, s in entry.owns(layer, feature).items()}
    case = _Case(entry, head, labels, own)
    same = matching(entry, head, labels)
    if entry.reads == "hidden" and math.prod(layer) != same.shape[1]:
        same = torch.from_numpy(rng.normal(size=(len(same), math.prod(layer)))).float()
    elif entry.divergence:
        _law_zero(case, same)
    student = same + torch.from_numpy(rng.normal(size=same.shape)).float() * 0.5
    _law_sign(case, student)
    _law_rows(case, student)
    _law_members(case, student)
    _law_gradient(case, student)
    _law_extremes(case, student)
    _law_shapes(case, student)
    _law_weight(case, student)


@dataclass(frozen=True)
class _Case:
    entry: LossEntry
    head: Head
    labels: Labels
    own: Mapping[str, torch.Tensor]

    @property
    def name(self) -> str:
        return self.entry.fn.__name__

    def __call__(
        self, student: torch.Tensor, labels: Labels | None = None, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        return evaluated(self.entry, self.head, labels or self.labels, student, self.own, mask)


def _law_zero(case: _Case, same: torch.Tensor) -> None:
    """Law 1, first half: a divergence is zero when both sides agree."""
    zero = case(same).abs().max().item()
    assert zero < 1e-5, f"{case.name} is {zero:.2e} where student and teacher agree, a divergence is 0 there"


def _law_sign(case: _Case, student: torch.Tensor) -> None:
    """Law 1, second half: a divergence is never negative."""
    least = case(student).min().item()
    assert not case.entry.divergence or least > -1e-6, f"{case.name} is negative: {least:.2e}"


def _law_rows(case: _Case, student: torch.Tensor) -> None:
    """Law 2: one value per row; a repeated batch keeps its mean, a permuted batch permutes. A loss of the whole batch does
    not depend on the order of its rows, nor on those that are masked."""
    order = torch.from_numpy(seeding.generator(0, "train", 2).permutation(len(student)))
    value, permuted = case(student), case(student[order], _rows(case.labels, lambda x: x[order]))
    if case.entry.kind == "batch":
        assert value.ndim == 0, f"{case.name} gives shape {tuple(value.shape)} for one member's batch"
        assert torch.allclose(permuted, value, rtol=1e-4, atol=1e-6), f"{case.name} depends on the order of rows"
        kept = len(student) // 2
        mask = (torch.arange(len(student)) < kept).float()
        alone = case(student[:kept], _rows(case.labels, lambda x: x[:kept]))
        wild = torch.where(mask[:, None] > 0, student, 1e3)
        assert torch.allclose(case(wild, mask=mask), alone, rtol=1e-4, atol=1e-6), f"{case.name} counts masked rows"
        return
    assert value.shape == student.shape[:1], f"{case.name} gives shape {tuple(value.shape)} for {len(student)} rows"
    twice = case(student.repeat(2, 1), _rows(case.labels, lambda x: x.repeat(2, *[1] * (x.ndim - 1))))
    assert torch.allclose(twice.mean(), value.mean(), rtol=1e-5), (
        f"{case.name} changes its mean when the batch is repeated"
    )
    assert torch.allclose(permuted, value[order], rtol=1e-5, atol=1e-6), f"{case.name} mixes rows"


def _law_members(case: _Case, student: torch.Tensor) -> None:
    """Law 2, for stacks: a member's value does not depend on the others; each may have a temperature of its own."""
    value, stacked = case(student), case(torch.stack([student, student + 1]))
    assert torch.allclose(stacked[0], value, rtol=1e-5, atol=1e-6), (
        f"{case.name} lets one member of a stack change another"
    )
    if "temperature" not in case.entry.needs:
        return
    hot = {**case.labels, "temperature": 2 * case.labels["temperature"]}
    long = {k: v[None] if v.ndim else v for k, v in case.labels.items()}
    long["temperature"] = torch.stack([case.labels["temperature"], hot["temperature"]])[:, None, None, None]
    arguments = (student.new_ones(1, len(student)),) if case.entry.kind == "batch" else ()
    both = case.entry.fn(torch.stack([student, student])[:, None], long, case.head, *arguments)
    wanted = torch.stack([value, case(student, hot)])
    assert both.numel() == wanted.numel(), f"{case.name} gives shape {tuple(both.shape)} for two members' temperatures"
    assert torch.allclose(both.reshape(wanted.shape), wanted, rtol=1e-5, atol=1e-6), (
        f"{case.name} does not give each member its own temperature"
    )


def _law_gradient(case: _Case, student: torch.Tensor) -> None:
    """Law 3: the gradient reaches the student and the loss's own parameters, never the teacher, and matches finite
    differences in float64."""
    wide = {k: v.double() if v.is_floating_point() else v for k, v in case.labels.items()}
    wide = _rows(wide, lambda x: x[:4])
    params = wide["params"].requires_grad_()
    own = {k: v.double().requires_grad_() for k, v in case.own.items() if v.numel()}
    empty = {k: v.double() for k, v in case.own.items() if not v.numel()}

    def value(x: torch.Tensor, *numbers: torch.Tensor) -> torch.Tensor:
        mine = {**empty, **dict(zip(own, numbers, strict=True))}
        return evaluated(case.entry, case.head, {**wide, "params": params.detach()}, x, mine)

    point = student[:4].double().requires_grad_()
    inputs = (point, *own.values())
    gradients = torch.autograd.grad(
        evaluated(case.entry, case.head, wide, point, {**empty, **own}).sum(), inputs, allow_unused=True
    )
    for what, gradient in zip(("the student", *own), gradients, strict=True):
        assert gradient is not None, f"{case.name} is not connected to {what}"
        assert gradient.abs().sum() > 0, f"{case.name} gives {what} no gradient"
    assert params.grad is None, f"{case.name} wrote a gradient into the teacher's labels"
    ok = torch.autograd.gradcheck(value, inputs, eps=1e-6, atol=1e-4, raise_exception=False)
    assert ok, f"{case.name}: its gradient differs from finite differences"


def _law_extremes(case: _Case, student: torch.Tensor) -> None:
    """Law 3, second half: finite values and gradients for extreme rows, and for rows that are all alike."""
    for size in (1e4, -1e4, 0.0):
        point = torch.full_like(student, size).requires_grad_()
        value = case(point)
        (gradient,) = torch.autograd.grad(value.sum(), point)
        assert torch.isfinite(value).all(), f"{case.name} is not finite at rows of {size:g}"
        assert torch.isfinite(gradient).all(), f"{case.name} has a gradient that is not finite at rows of {size:g}"
        steep = gradient.abs().max().item()
        assert size or steep < 1e6, f"{case.name} has a gradient of {steep:.0e} at rows of 0, such as dead units say"


def _law_shapes(case: _Case, student: torch.Tensor) -> None:
    """Law 5: rows that do not fit are refused instead of broadcast."""
    at = 0 if "features" in case.entry.needs else 1  # a layer's row may have any shape, so rows are put in front of it
    crooked = _rows(case.labels, lambda x: x.unsqueeze(at))
    try:
        case(student, crooked)
    except ValueError:
        return
    shape = "[1, B, F]" if at == 0 else "[B, 1, W]"
    raise AssertionError(f"{case.name} accepts label rows of shape {shape} against student rows [B, W]")


def _law_weight(case: _Case, student: torch.Tensor) -> None:
    """Law 4: an objective is continuous as a loss's weight goes to 0. For rows of the table: others have no name to weigh."""
    name = next((name for name, entry in LOSSES.items() if entry is case.entry), None)
    if name is None:
        return
    rows = student[None, None] if case.entry.reads == "params" else case.labels["params"][None, None]
    head, labels = case.head, {k: v[None] if v.ndim else v for k, v in case.labels.items()}
    labels[f"feature:{SOURCE}"] = labels["feature"]
    term = objective.Term(name, 1.0, source=SOURCE if "features" in case.entry.needs else "")
    own = {f"{term.key}/{k}": v[None] for k, v in case.own.items()}
    inside = objective.Inside({objective.LAST: student[None, None]}, own)
    base = objective.Term("nll" if head.discrete else AUTO[head.kind], 1.0)
    batch = Batch("task", rows[0], None, None, labels)

    def at(weight: float) -> float:
        terms = (base, replace(term, weight=weight))
        return objective.evaluate(terms, rows, batch, head, inside=inside).sum().item()

    none, little = at(0.0), at(1e-9)
    limit = 1e-6 * (1 + abs(at(1.0)) + abs(none))
    assert abs(little - none) < limit, f"{case.name} jumps from {none:g} to {little:g} when its weight leaves 0"


def _rows(labels: Labels, change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: change(v) if v.ndim else v for k, v in labels.items()}


def check_stored_q(store_and_load: Callable[[Floats], Floats], actions: int = 6, rows: int = 2000) -> None:
    """Law 6: Q of size 1e3 with top gaps of 1e-2 keep their greedy action and top gap (1e-4 relative) in storage."""
    rng = seeding.generator(0, "train", 6)
    q = np.full((rows, actions), 1e3) - rng.uniform(0.02, 5.0, (rows, actions))
    best = rng.integers(actions, size=rows)
    second = (best + 1 + rng.integers(actions - 1, size=rows)) % actions
    q[np.arange(rows), best], q[np.arange(rows), second] = 1e3, 1e3 - 1e-2
    given = q.astype(np.float32)
    kept = store_and_load(given)
    assert (kept.argmax(axis=1) == given.argmax(axis=1)).all(), "storage changed a greedy action"
    gap_given, gap_kept = (
        np.sort(x.astype(np.float64), axis=1)[:, -1] - np.sort(x.astype(np.float64), axis=1)[:, -2]
        for x in (given, kept)
    )
    worst = float((np.abs(gap_kept - gap_given) / gap_given).max())
    assert worst <= 1e-4, f"storage changed a top gap by {worst:.1e} of itself, allowed 1e-4"


# ---------------------------------------------------------------- policies


def check_policy(policy: Policy, batch: int = 8, steps: int = 5, seed: int = 0) -> None:
    """Shapes, finiteness, purity, obedience to `first`, and rows that do not see each other."""
    rng = seeding.generator(seed, "train", 3)
    space = policy.spec.observation_space
    space.seed(int(rng.integers(2**31)))
    frames = [_batch(policy, [space.sample() for _ in range(batch)]) for _ in range(steps)]
    first = np.zeros(batch, bool)
    outputs, state = [], policy.initial_state(batch)
    for t, obs in enumerate(frames):
        now = np.ones(batch, bool) if t == 0 else first
        before = {k: v.copy() for k, v in state.items()}
        output = policy(obs, state, now)
        assert output.params.shape == (batch, policy.head.width), (
            f"rows of shape {output.params.shape}, the head says {(batch, policy.head.width)}"
        )
        assert np.isfinite(output.params).all(), "parameter rows are not finite"
        assert all(np.array_equal(before[k], state[k]) for k in state), "the policy changed the state it was given"
        again = policy(obs, state, now)
        assert np.array_equal(again.params, output.params), "two calls with the same input differ"
        outputs.append(output.params)
        state = output.state
    fresh = policy(frames[0], state, np.ones(batch, bool)).params
    assert np.allclose(fresh, outputs[0], rtol=1e-5, atol=1e-5), "rows with `first` remember the episode before"
    alone = policy(tasks.take_rows(frames[0], slice(0, 1)), policy.initial_state(1), np.ones(1, bool)).params
    assert np.allclose(alone, outputs[0][:1], rtol=1e-4, atol=1e-5), "a row's answer depends on the other rows"
    distributions.act(policy.head, outputs[0])


def _batch(policy: Policy, samples: list[object]) -> Observation:
    obs = tasks.empty_observation(policy.spec, len(samples))
    for row, sample in enumerate(samples):
        tasks.put_row(obs, row, sample)
    return obs


__all__ = ["check_loss", "check_policy", "check_stored_q", "evaluated", "example_labels", "matching"]
