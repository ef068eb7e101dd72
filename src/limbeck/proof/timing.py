"""Seconds per step at batch 1."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns

import numpy as np

from limbeck import tasks
from limbeck.contracts import Latency, Observation, Policy, State

WARM_UP_CALLS = 100
CALLS = 2000
MOST_NANOSECONDS = 1_000_000_000  # of measuring; a slow policy is called less often
FEWEST_CALLS = 20


def latency(policy: Policy, obs: Observation | None = None) -> Latency:
    """Time of one call of a policy on one observation [1, ...] (None: zeros), its memory carried along."""
    seen = obs if obs is not None else tasks.empty_observation(policy.spec, 1)
    state: list[State] = [policy(seen, policy.initial_state(1), np.ones(1, bool)).state]
    later = np.zeros(1, bool)

    def step() -> None:
        state[0] = policy(seen, state[0], later).state

    return latency_of(step)


def latency_of(step: Callable[[], object], calls: int = CALLS) -> Latency:
    """Time of one call of anything, such as the bare function of a compiled artefact."""
    begin = perf_counter_ns()
    for _ in range(WARM_UP_CALLS):
        step()
        if perf_counter_ns() - begin > MOST_NANOSECONDS // 4:
            break
    spent: list[int] = []
    begin = perf_counter_ns()
    while len(spent) < calls and (len(spent) < FEWEST_CALLS or perf_counter_ns() - begin < MOST_NANOSECONDS):
        before = perf_counter_ns()
        step()
        spent.append(perf_counter_ns() - before)
    p50, p99 = np.percentile(np.asarray(spent) * 1e-9, [50, 99])
    return Latency(float(p50), float(p99), len(spent))
