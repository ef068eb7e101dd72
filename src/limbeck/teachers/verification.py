"""Play the teacher before anything is distilled from it: both modes, intervals, and a diagnosis where it fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from limbeck import distributions, rollout, seeding, spaces
from limbeck.contracts import Episodes, Evaluation, Floats, Head, Mode, Task, Teacher, TeacherInfo
from limbeck.errors import InputError
from limbeck.recordings import Recordings
from limbeck.settings import VerifySettings

RESAMPLES = 2000
FAR = 10.0  # standard deviations that a training distribution does not reach
WIDE = 3.0  # spread of an observation that a network trained on normalised ones has not seen
SATURATED = 0.9  # share of continuous actions at a bound that no sound policy on its own task shows


@dataclass(frozen=True)
class Verification:
    """What the teacher is worth, and in which mode it plays from here on."""

    evaluations: Mapping[str, Evaluation]  # "greedy", "sampled" (where the head has randomness), "random"
    mode: Mode
    notes: tuple[str, ...]

    @property
    def env_steps(self) -> int:
        return sum(evaluation.env_steps for evaluation in self.evaluations.values())


def verify(
    teacher: Teacher, task: Task, settings: VerifySettings, run_seed: int, stated: float | None = None
) -> Verification:
    """Play the teacher greedily, sampled where its head has randomness, and at random; choose its better mode.

    `stated` is the return the teacher's own papers promise; `settings.expect` overrides it. Raises InputError with a
    diagnosis where the better mode is not above random play, falls short of the promise, or lacks its normaliser;
    `settings.accept` turns all into notes.
    """
    seeds = [seeding.episode_seed(run_seed, "verify", i) for i in range(settings.episodes)]
    watcher = Watcher(teacher)
    played = {"greedy": rollout.play(teacher.policy, task, seeds, run_seed=run_seed, watch=watcher)}
    if has_randomness(teacher.policy.head):
        played["sampled"] = rollout.play(teacher.policy, task, seeds, mode="sampled", run_seed=run_seed)
    mode = better_mode(played)
    random_seeds = [seeding.episode_seed(run_seed, "verify", i) for i in range(settings.random_episodes)]
    played["random"] = rollout.play(None, task, random_seeds, mode="uniform", run_seed=run_seed)
    evaluations = {
        key: evaluate(
            "random" if key == "random" else "teacher", "greedy" if key == "greedy" else "sampled", episodes, run_seed
        )
        for key, episodes in played.items()
    }
    complaints = _complaints(evaluations, mode, settings.expect if settings.expect is not None else stated)
    if lacks_normaliser(teacher.info):  # such a teacher is often a little better than random play, and useless
        complaints.append("it was trained under VecNormalize, whose statistics were not given")
    if complaints and not settings.accept:
        raise InputError(
            f"the teacher is not what it should be on {task.name}: {' and '.join(complaints)}. "
            f"{'; '.join(watcher.diagnosis(task))}. Mend that, or distill it as it is with --accept-teacher."
        )
    notes = tuple(f"accepted although {complaint}" for complaint in complaints)
    return Verification(evaluations, mode, notes + _mode_note(evaluations, mode))


def refuse_unrewarded(records: Recordings) -> None:
    """Raise InputError for recordings that cannot be held against play."""
    if not records.has_rewards:
        raise InputError(
            f"the recordings {records.name} hold no rewards, so there is nothing to hold the students' return against. Add the column reward, or imitate with --data and without an environment."
        )


def of_recordings(records: Recordings, task: Task, settings: VerifySettings, run_seed: int) -> Verification:
    """Recordings as a teacher: worth the returns they hold, against random play in the task."""
    refuse_unrewarded(records)
    seeds = [seeding.episode_seed(run_seed, "verify", i) for i in range(settings.random_episodes)]
    chance = rollout.play(None, task, seeds, mode="uniform", run_seed=run_seed)
    lengths = np.array([end - begin for begin, end in records.episodes], np.int64)
    shown = Episodes(task.name, np.full(len(lengths), -1, np.int64), records.returns, lengths)
    evaluations = {
        "greedy": evaluate("teacher", "greedy", shown, run_seed),
        "random": evaluate("random", "sampled", chance, run_seed),
    }
    complaints = _complaints(evaluations, "greedy", settings.expect)
    if complaints and not settings.accept:
        raise InputError(
            f"the recordings are not what they should be on {task.name}: {' and '.join(complaints)}. Give those of this environment, or imitate them as they are with --accept-teacher."
        )
    notes = tuple(f"accepted although {complaint}" for complaint in complaints)
    return Verification(evaluations, "greedy", (*notes, f"the teacher is {len(lengths)} recorded episodes"))


def stated_return(info: TeacherInfo) -> float | None:
    """The return that the teacher's provenance or sidecar states, None where it states none.

    Of a measured interval it is the lower end: two honest measurements of one teacher differ by their noise.
    """
    value = info.stated.get("return")
    if isinstance(value, Mapping):
        value = value.get("low", value.get("mean"))
    return float(value) if isinstance(value, (int, float)) and np.isfinite(value) else None


def lacks_normaliser(info: TeacherInfo) -> bool:
    """Whether the teacher was trained under VecNormalize and no file of its statistics was found."""
    return bool(info.stated.get("trained_normalised")) and "normaliser_sha256" not in info.stated


def has_randomness(head: Head) -> bool:
    return head.kind in ("categorical", "multicategorical", "bernoulli", "gaussian", "squashed")


def better_mode(played: Mapping[str, Episodes]) -> Mode:
    """Sampled play only if it beats greedy play by more than three standard errors on the same seeds."""
    if "sampled" not in played:
        return "greedy"
    gain = played["sampled"].returns - played["greedy"].returns
    error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else 0.0
    return "sampled" if gain.mean() > 3 * error else "greedy"


def evaluate(policy: str, mode: Mode, episodes: Episodes, run_seed: int) -> Evaluation:
    """Mean return with its 95 % percentile-bootstrap interval over episodes (Efron 1979)."""
    low, high = bootstrap(episodes.returns, run_seed)
    returns = tuple(float(value) for value in episodes.returns)
    mean = float(episodes.returns.mean())
    return Evaluation(policy, mode, mean, low, high, len(returns), episodes.env_steps, returns)


def bootstrap(returns: NDArray[np.float64], run_seed: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean; the same numbers for the same returns and seed."""
    rng = seeding.generator(run_seed, "verify", RESAMPLES, len(returns))
    means = returns[rng.integers(len(returns), size=(RESAMPLES, len(returns)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _complaints(evaluations: Mapping[str, Evaluation], mode: Mode, promised: float | None) -> list[str]:
    best, chance = evaluations[mode], evaluations["random"]
    shown = f"its return is {best.mean:.4g} (95 % {best.low:.4g} to {best.high:.4g}, {best.episodes} episodes, {mode})"
    complaints = []
    if best.low <= chance.mean:
        complaints.append(f"{shown}, not above random play ({chance.mean:.4g})")
    if promised is not None and best.high < promised:
        complaints.append(f"{shown}, below the {promised:.4g} stated for it")
    return complaints


def _mode_note(evaluations: Mapping[str, Evaluation], mode: Mode) -> tuple[str, ...]:
    if "sampled" not in evaluations:
        return ("the teacher plays greedily: its head has no randomness",)
    means = ", ".join(f"{key} {evaluations[key].mean:.4g}" for key in ("greedy", "sampled"))
    better = evaluations[mode].mean >= max(evaluations[key].mean for key in ("greedy", "sampled"))
    return (
        f"the teacher plays {mode}, {'its better mode' if better else 'since sampling is not surely better'} ({means})",
    )


# ---------------------------------------------------------------- diagnosis


@dataclass
class Watcher:
    """Running moments of what the teacher sees and does."""

    teacher: Teacher
    rows: int = 0
    far: float = 0.0  # normalised numbers beyond FAR, summed over rows as a share of the observation
    at_bound: float = 0.0  # executed continuous numbers at a bound, likewise
    total: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    squares: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    choices: dict[bytes, int] = field(default_factory=dict)

    def __call__(self, frame: rollout.Frame) -> None:
        if not frame.alive.any():
            return
        policy = self.teacher.policy
        view = {"view": self.teacher.blueprint.view} if self.teacher.blueprint is not None else {}
        flat = spaces.flatten(frame.obs, policy.spec.observation_space, **view)[frame.alive].astype(np.float64)
        self.rows += len(flat)
        self.total = flat.sum(axis=0) + (self.total if self.total.size else 0)
        self.squares = (flat**2).sum(axis=0) + (self.squares if self.squares.size else 0)
        norm = self.teacher.blueprint.normaliser if self.teacher.blueprint is not None else None
        if norm is not None:
            self.far += float((np.abs((flat - norm.mean) / norm.scale) >= min(FAR, norm.clip)).mean(axis=1).sum())
        actions = frame.actions[frame.alive]
        if policy.head.discrete:
            for action in actions.reshape(len(actions), -1):
                self.choices[action.tobytes()] = self.choices.get(action.tobytes(), 0) + 1
        elif policy.head.bounded:
            self.at_bound += float(_at_bound(policy.head, actions.reshape(len(actions), -1)).mean(axis=1).sum())

    def diagnosis(self, task: Task) -> list[str]:
        """What was measured, as likely causes; where nothing stands out, that is said."""
        found = []
        blueprint, rows = self.teacher.blueprint, max(self.rows, 1)
        normalised = blueprint is not None and blueprint.normaliser is not None
        if lacks_normaliser(self.teacher.info):
            found.append("likely a missing normaliser: give the file that VecNormalize.save wrote with --normaliser")
        elif not normalised and self.spread.max(initial=0) > WIDE:
            found.append(
                f"perhaps a missing normaliser: observations spread up to {self.spread.max():.3g} (a normaliser brings that to 1)"
            )
        if normalised and self.far / rows > 0.01:
            found.append(
                f"likely the wrong environment or normaliser: {self.far / rows:.0%} of the normalised observations lie beyond {FAR:g} standard deviations"
            )
        if self.at_bound / rows > SATURATED:
            found.append(f"perhaps the wrong action scale: {self.at_bound / rows:.0%} of the actions sit at a bound")
        if self.choices and max(self.choices.values()) / rows > 0.99:
            found.append("it takes one and the same action nearly always")
        return found or [
            f"likely the wrong environment or an unfinished teacher: nothing unusual in {self.rows:,} steps"
        ]

    @property
    def spread(self) -> Floats:
        """[O] standard deviation of each flat observation."""
        if not self.rows:
            return np.zeros(0, np.float32)
        variance = self.squares / self.rows - (self.total / self.rows) ** 2
        return np.sqrt(np.maximum(variance, 0)).astype(np.float32)


def _at_bound(head: Head, actions: Floats) -> NDArray[np.bool_]:
    low, high = distributions.bounds(head)
    margin = 0.01 * (high - low)
    return (actions <= low + margin) | (actions >= high - margin)
