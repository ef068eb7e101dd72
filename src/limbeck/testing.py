"""The contracts that plug-ins must pass, for this project's own and for yours.

`check_loss` holds the laws every loss obeys, `check_policy` what rollout, proof and exporters rely on.
Each raises AssertionError with a sentence that says which law was broken and by how much.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from limbeck import distributions, seeding, tasks
from limbeck.contracts import Floats, Head, LossEntry, Observation, Policy

Labels = Mapping[str, torch.Tensor]


# ---------------------------------------------------------------- losses


def example_labels(head: Head, rows: int = 64, seed: int = 0) -> dict[str, torch.Tensor]:
    """Plausible teacher labels for a head: inside the action bounds and the pre-tanh limit, so that equality is reachable."""
    rng = seeding.generator(seed, "train", rows)
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
    stored = distributions.canonical(head, params.astype(np.float32))[0]
    hard = rng.integers(head.sizes[0], size=rows)
    if head.kind in ("bernoulli", "multicategorical"):
        most = (2,) * n if head.kind == "bernoulli" else head.sizes
        hard = rng.integers(most, size=(rows, len(most)))
    return {"params": torch.from_numpy(stored), "temperature": torch.tensor(0.7), "hard": torch.from_numpy(hard)}


def matching(entry: LossEntry, head: Head, labels: Labels) -> torch.Tensor:
    """The student rows that say exactly what the teacher says, in the form this loss wants."""
    params = labels["params"]
    if entry.needs == frozenset({"q"}):
        return params / labels["temperature"]
    if entry.needs == frozenset({"action"}):
        return params[:, : sum(head.sizes)]
    return params


def check_loss(entry: LossEntry, head: Head, seed: int = 0) -> None:
    """All laws for one row of the table LOSSES on one teacher head."""
    labels = example_labels(head, seed=seed)
    same = matching(entry, head, labels)
    rng = seeding.generator(seed, "train", 1)
    student = same + torch.from_numpy(rng.normal(size=same.shape).astype(np.float32)) * 0.5
    _law_divergence(entry, head, labels, same, student)
    _law_rows(entry, head, labels, student)
    _law_gradient(entry, head, labels, student)
    _law_extremes(entry, head, labels, student)
    _law_shapes(entry, head, labels, student)


def _law_divergence(entry: LossEntry, head: Head, labels: Labels, same: torch.Tensor, student: torch.Tensor) -> None:
    """Law 1: a divergence is zero when both sides agree, and never negative."""
    value = entry.fn(student, labels, head)
    if entry.divergence:
        zero = entry.fn(same, labels, head).abs().max().item()
        assert zero < 1e-5, (
            f"{entry.fn.__name__} is {zero:.2e} where student and teacher agree, a divergence is 0 there"
        )
        assert value.min().item() > -1e-6, f"{entry.fn.__name__} is negative: {value.min().item():.2e}"


def _law_rows(entry: LossEntry, head: Head, labels: Labels, student: torch.Tensor) -> None:
    """Law 2: one value per row; a repeated batch keeps its mean, a permuted batch permutes, a stack of members agrees."""
    if entry.kind != "point":
        return
    value = entry.fn(student, labels, head)
    assert value.shape == student.shape[:1], (
        f"{entry.fn.__name__} gives shape {tuple(value.shape)} for {student.shape[0]} rows"
    )
    twice = entry.fn(student.repeat(2, 1), _rows(labels, lambda x: x.repeat(2, *[1] * (x.ndim - 1))), head)
    assert torch.allclose(twice.mean(), value.mean(), rtol=1e-5), (
        f"{entry.fn.__name__} changes its mean when the batch is repeated"
    )
    order = torch.from_numpy(seeding.generator(0, "train", 2).permutation(len(student)))
    permuted = entry.fn(student[order], _rows(labels, lambda x: x[order]), head)
    assert torch.allclose(permuted, value[order], rtol=1e-5, atol=1e-6), f"{entry.fn.__name__} mixes rows"
    stacked = entry.fn(torch.stack([student, student + 1]), labels, head)
    assert torch.allclose(stacked[0], value, rtol=1e-5, atol=1e-6), (
        f"{entry.fn.__name__} lets one member of a stack change another"
    )


def _law_gradient(entry: LossEntry, head: Head, labels: Labels, student: torch.Tensor) -> None:
    """Law 3: the gradient reaches the student, never the teacher, and matches finite differences in float64."""
    wide = {k: v.double() if v.is_floating_point() else v for k, v in labels.items()}
    wide = {k: v[:4] if v.ndim else v for k, v in wide.items()}
    point = student[:4].double().requires_grad_()
    params = wide["params"].requires_grad_()
    gradient = torch.autograd.grad(entry.fn(point, wide, head).sum(), point, allow_unused=True)[0]
    assert gradient is not None, f"{entry.fn.__name__} is not connected to the student"
    assert gradient.abs().sum() > 0, f"{entry.fn.__name__} gives the student no gradient"
    assert params.grad is None, f"{entry.fn.__name__} wrote a gradient into the teacher's labels"
    ok = torch.autograd.gradcheck(
        lambda x: entry.fn(x, {**wide, "params": params.detach()}, head),
        (point,),
        eps=1e-6,
        atol=1e-4,
        raise_exception=False,
    )
    assert ok, f"{entry.fn.__name__}: its gradient differs from finite differences"


def _law_extremes(entry: LossEntry, head: Head, labels: Labels, student: torch.Tensor) -> None:
    """Law 3, second half: finite values and gradients for extreme rows."""
    for size in (1e4, -1e4):
        point = torch.full_like(student, size).requires_grad_()
        value = entry.fn(point, labels, head)
        (gradient,) = torch.autograd.grad(value.sum(), point)
        assert torch.isfinite(value).all(), f"{entry.fn.__name__} is not finite at rows of {size:g}"
        assert torch.isfinite(gradient).all(), (
            f"{entry.fn.__name__} has a gradient that is not finite at rows of {size:g}"
        )


def _law_shapes(entry: LossEntry, head: Head, labels: Labels, student: torch.Tensor) -> None:
    """Law 5: rows that do not fit are refused instead of broadcast."""
    crooked = {**labels, "params": labels["params"][:, None]}
    try:
        entry.fn(student, crooked, head)
    except ValueError:
        return
    raise AssertionError(f"{entry.fn.__name__} accepts label rows of shape [B, 1, W] against student rows [B, W]")


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


__all__ = ["check_loss", "check_policy", "check_stored_q", "example_labels", "matching"]
