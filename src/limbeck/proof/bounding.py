"""Floor and ceiling of the return, fixed before a proof: the ceiling by verification, the floor by random play beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from limbeck import rollout, seeding
from limbeck.contracts import Bounds, Evaluation, Mode, Task
from limbeck.errors import InputError
from limbeck.proof.eprocess import Reals
from limbeck.settings import ProveSettings

FIRST_EPISODES, MORE_EPISODES = 16, 64  # of random play per call; the first few tell how long one is


def affordable(task: Task, settings: ProveSettings) -> ProveSettings:
    """The settings with no more episodes than the task has different ones for proofs (test rows of a labelled set)."""
    most = settings.max_episodes if task.proof_episodes is None else min(settings.max_episodes, task.proof_episodes)
    return replace(settings, max_episodes=most)


def bounds_for(
    task: Task, evaluations: Mapping[str, Evaluation], settings: ProveSettings, run_seed: int, mode: Mode | None = None
) -> tuple[Bounds, int]:
    """The bounds of a task and the environment steps they cost: its own where it knows them, otherwise measured.

    `evaluations` are the verification's ("greedy", "sampled", "random"); `mode` is the teacher's in the proof
    (None: the one with the higher mean).
    """
    if task.bounds is not None:
        return task.bounds, 0
    played: dict[str, Evaluation] = {
        key: evaluation for key, evaluation in evaluations.items() if key != "random" and evaluation.returns
    }
    if not played:
        raise InputError("bounds need at least one verification episode of the teacher, given none. Verify it first.")
    best = max(played, key=lambda key: played[key].mean)
    teacher = played[mode if mode is not None else best].returns
    random, steps = random_returns(task, settings.bound_episodes, settings.bound_steps, run_seed)
    seen = evaluations["random"].returns if "random" in evaluations else ()
    return widened(np.asarray(teacher, np.float64), np.concatenate([random, seen])), steps


def widened(teacher: Reals, random: Reals) -> Bounds:
    """Floor: the worst random episode lowered by a quarter of the random range. Ceiling: the best episode raised by a
    quarter of the teacher's range.

    A teacher that always returns the same (CartPole's 500) has no range: then a quarter of the random range is taken,
    the only scale on which this task was seen to vary. A random range of zero is likewise replaced by the teacher's,
    and where both are zero by the distance between the two.
    """
    worst, best = float(random.min()), float(max(teacher.max(), random.max()))
    down, up = float(np.ptp(random)), float(np.ptp(teacher))
    down, up = down or up or best - worst, up or down or best - worst
    if down <= 0:
        raise InputError(
            f"teacher and random play all return {best:g}, so no share of it can be told. Check the environment and the teacher."
        )
    source = (
        f"floor: worst of {len(random):,} random episodes ({worst:.6g}) lowered by a quarter of their range; "
        f"ceiling: best of these and {len(teacher):,} of the teacher ({best:.6g}) raised by a quarter of the teacher's"
    )
    return Bounds(worst - down / 4, best + up / 4, source)


def random_returns(task: Task, episodes: int, most_steps: int, run_seed: int) -> tuple[Reals, int]:
    """Returns of up to `episodes` random episodes of stage "bounds", and their steps.

    Stops before `most_steps` would be passed at the mean length so far, though never before the first few episodes.
    """
    returns: list[float] = []
    steps, wanted = 0, min(FIRST_EPISODES, episodes)
    while wanted > 0:
        seeds = [seeding.episode_seed(run_seed, "bounds", len(returns) + i) for i in range(wanted)]
        played = rollout.play(None, task, seeds, mode="uniform", run_seed=run_seed)
        returns.extend(played.returns.tolist())
        steps += played.env_steps
        affordable = int((most_steps - steps) * len(returns) / max(steps, 1))
        wanted = min(MORE_EPISODES, episodes - len(returns), affordable)
    return np.asarray(returns), steps
