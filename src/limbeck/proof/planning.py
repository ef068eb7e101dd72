"""How many episodes a proof will take, said before it is played."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from limbeck import rollout, seeding
from limbeck.contracts import Bounds, Mode, Policy, Task
from limbeck.errors import InputError
from limbeck.proof import eprocess, returns
from limbeck.proof.eprocess import CAP, Reals
from limbeck.proof.returns import Triples
from limbeck.settings import ProveSettings

SIMULATIONS = 200


def plan(
    student: Policy, teacher: Policy, task: Task, bounds: Bounds, settings: ProveSettings, seeds: Sequence[int],
    teacher_mode: Mode, run_seed: int,
) -> Mapping[str, Any]:  # fmt: skip
    """Play a pilot on `seeds` (of a stage other than proof) and say what a proof would take.

    Keys: pilot_episodes, pilot_env_steps, retention (of the pilot), perfect (episodes of a student that equals its teacher),
    expected (design's formula), median and nine_in_ten (episodes of simulated proofs; None: more than max_episodes),
    proved (share of the simulated proofs that end proved), env_steps (of the median proof).
    """
    if any(seeding.stage_of(seed) == "proof" for seed in seeds):
        raise InputError("a pilot was given seeds of the proof itself. Use those of another stage, for example select.")
    played = [
        rollout.play(student, task, seeds, run_seed=run_seed),
        rollout.play(teacher, task, seeds, mode=teacher_mode, run_seed=run_seed),
        rollout.play(None, task, seeds, mode="uniform", run_seed=run_seed),
    ]
    pilot = Triples(*(episodes.returns for episodes in played))
    steps = sum(episodes.env_steps for episodes in played)
    found = forecast(pilot, bounds, settings, run_seed)
    per_episode = steps / len(seeds)
    ends = found["median"]
    return {
        "pilot_episodes": len(seeds), "pilot_env_steps": steps, "retention": returns.retention(pilot), **found,
        "env_steps": None if ends is None else round(ends * per_episode),
    }  # fmt: skip


def forecast(pilot: Triples, bounds: Bounds, settings: ProveSettings, run_seed: int) -> dict[str, Any]:
    """Episodes by formula and by simulated proofs that draw their episodes from the pilot."""
    d = returns.differences(pilot, settings.retain)[:, 0]
    worst = float(returns.span(bounds, settings.retain)[0])
    gap = float(pilot.teacher.mean() - pilot.random.mean())
    ends = simulated_ends(d, worst, settings, run_seed)
    finite = np.isfinite(ends)
    median, most = (float(np.quantile(ends, q, method="higher")) for q in (0.5, 0.9))
    return {
        "perfect": perfect_episodes(settings.retain, settings.alpha, worst, gap),
        "expected": expected_episodes(float(d.mean()), float(d.std()), settings.alpha, worst),
        "median": round(median) if math.isfinite(median) else None,
        "nine_in_ten": round(most) if math.isfinite(most) else None,
        "proved": float(finite.mean()),
    }  # fmt: skip


def expected_episodes(delta: float, sigma: float, alpha: float, bound: float) -> float:
    """max(2 sigma^2 / delta^2, 2 B / delta) ln(1 / alpha) for a mean difference `delta`; infinite where it is not above 0."""
    if delta <= 0:
        return math.inf
    return max(2 * sigma**2 / delta**2, 2 * bound / delta) * math.log(1 / alpha)


def perfect_episodes(retain: float, alpha: float, bound: float, gap: float) -> int | None:
    """Episodes that prove a student whose return equals its teacher's, `gap` above random play on every seed.

    None where no number does (retain >= 1, or a teacher not above random play).
    """
    margin = (1 - retain) * gap
    return None if margin <= 0 else math.ceil(math.log(1 / alpha) / math.log1p(CAP * margin / bound))


def simulated_ends(d: Reals, bound: float, settings: ProveSettings, run_seed: int) -> Reals:
    """[SIMULATIONS] episodes until proofs on differences drawn from `d` [N] end proved; inf: not within max_episodes."""
    rng = seeding.generator(run_seed, "select", len(d), settings.max_episodes)
    state = eprocess.begin(bound, SIMULATIONS)
    ends = np.full(SIMULATIONS, np.inf)
    low = np.maximum(d, -bound)  # a pilot episode outside the bounds would make the real proof undecided
    for i in range(settings.max_episodes):
        state, path = eprocess.advance(state, low[rng.integers(len(d), size=(1, SIMULATIONS))])
        ends[(path[0] >= eprocess.threshold(settings.alpha)) & np.isinf(ends)] = i + 1
        if np.isfinite(ends).all():
            break
    return ends
