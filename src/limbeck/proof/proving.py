"""prove(student, teacher, task): play triples on fresh seeds until the claim is proved, hopeless, or out of episodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from limbeck.contracts import Bounds, Mode, Policy, Proof, Task, Verdict, confidence
from limbeck.errors import InputError
from limbeck.proof import eprocess, returns
from limbeck.proof.bounding import affordable
from limbeck.proof.cache import ReturnCache, play_proof, proof_seeds
from limbeck.proof.returns import Triples
from limbeck.settings import ProveSettings

STREAM = "proof"  # stage of the seeds
FUTILITY_EPISODES = 50  # no proof is given up before
LATE = "; chosen with episodes seen, so the lower bound that holds for all retentions has to reach it too"
FUTILITY_Z = 3.0902323  # 99.9 % point of the normal: giving up too early costs a proof, never a false claim

OnLook = Callable[[int, float], None]  # episodes counted, log wealth


def prove(
    student: Policy,
    teacher: Policy,
    task: Task,
    *,
    member: str,
    played_by: str,
    bounds: Bounds,
    settings: ProveSettings,
    run_seed: int,
    teacher_mode: Mode,
    cache: ReturnCache,
    previous: Proof | None = None,
    on_look: OnLook | None = None,
) -> Proof:
    """The verdict on "student keeps settings.retain of teacher" at error probability settings.alpha.

    Episodes are played in chunks and counted one by one in seed order; the first crossing of 1 / alpha proves, and what
    was played beyond it is on the bill and not in the verdict. `previous` is continued: its stored returns are
    counted again first, new seeds follow, `settings.max_episodes` is the total, or what the task has for proofs if
    that is less. A previous proof at another
    retention or level is continued too. That claim was chosen with episodes seen, so its own e-process is not enough:
    it is proved once the lower bound that holds for all retentions at once reaches it as well.
    """
    settings = affordable(task, settings)
    _check_continues(previous, task, member, played_by, bounds, run_seed)
    trial = Trial(bounds, settings, run_seed, _chosen_late(previous, settings))
    if previous is not None:
        trial.count(_stored(previous))
    steps = previous.env_steps if previous is not None else 0
    claim = f"{task.name}/{member}/{played_by}/seed {run_seed}/from {trial.episodes}"
    while trial.verdict is None:
        start, stop = trial.episodes, min(trial.episodes + settings.chunk, settings.max_episodes)
        played = play_proof(student, task, run_seed, start, stop, "greedy")
        taught = cache.returns(f"teacher {teacher_mode}", teacher, task, run_seed, start, stop, teacher_mode, claim)
        chance = cache.returns("random", None, task, run_seed, start, stop, "sampled", claim)
        steps += played.env_steps
        trial.count(Triples(played.returns, taught, chance))
        if on_look is not None:
            on_look(trial.episodes, trial.log_wealth)
    return trial.proof(task, member, played_by, steps + cache.bill(claim))


@dataclass
class Trial:
    """Episodes counted so far, and the verdict once there is one."""

    bounds: Bounds
    settings: ProveSettings
    run_seed: int
    late: bool = False  # the claim was chosen with episodes seen
    verdict: Verdict | None = None
    reason: str = ""
    rows: list[tuple[float, float, float]] = field(default_factory=list)  # student, teacher, random

    def __post_init__(self) -> None:
        self._claim = eprocess.begin(returns.span(self.bounds, self.settings.retain))
        self._grid = returns.begin_grid(self.bounds)
        self._sums = np.zeros(2)  # of D and D squared

    @property
    def episodes(self) -> int:
        return len(self.rows)

    @property
    def log_wealth(self) -> float:
        return float(self._claim.log_wealth[0])

    def count(self, triples: Triples) -> None:
        """Look after every episode, in order; stop at the first verdict."""
        begin, clean = self.episodes, 0
        for row in zip(triples.student.tolist(), triples.teacher.tolist(), triples.random.tolist(), strict=True):
            if self.verdict is not None:
                break
            self.rows.append(row)
            self._look(row)
            clean += self.verdict != "undecided"
        if not self.late:  # all at once: no verdict rests on it
            self._grid = returns.advance_grid(self._grid, self._triples(begin, begin + clean))

    def _look(self, row: tuple[float, float, float]) -> None:
        outside = self._outside(*row)
        if outside:
            self.verdict, self.reason = "undecided", outside
            return
        last = self._triples(self.episodes - 1, self.episodes)
        difference = returns.differences(last, self.settings.retain)
        if self.late:
            self._grid = returns.advance_grid(self._grid, last)
        self._claim, _ = eprocess.advance(self._claim, difference)
        self._sums += float(difference[0, 0]), float(difference[0, 0]) ** 2
        self._decide()

    def _decide(self) -> None:
        n, most = self.episodes, self.settings.max_episodes
        needed = eprocess.threshold(self.settings.alpha)
        have = f"e-value {math.exp(min(self.log_wealth, 700)):.3g} of the {math.exp(needed):.3g} needed"
        if self.log_wealth >= needed and (not self.late or self._low() >= self.settings.retain):
            self.verdict = "proved"
            self.reason = f"{claim_of(self.settings.retain)} at {confidence(self.settings.alpha)} confidence after {n} episodes{LATE * self.late}"
        elif n >= most:
            self.verdict, self.reason = "not proved", f"{have} after {n} episodes, the most allowed{LATE * self.late}"
        elif n >= FUTILITY_EPISODES and eprocess.most_wealth(self._claim, self._hope(most - n), most - n) < needed:
            self.verdict = "not proved"
            self.reason = f"{have} after {n} episodes; given up, as it would hardly be proved within {most:,}"

    def _hope(self, more: int) -> float:
        """Asymptotic 99.9 % upper bound of the mean of D over that many more episodes."""
        mean, square = self._sums / self.episodes
        return float(mean + FUTILITY_Z * math.sqrt(max(square - mean**2, 0.0) * (1 / self.episodes + 1 / more)))

    def _outside(self, student: float, teacher: float, random: float) -> str:
        """Why this episode breaks the bounds; empty if it does not. Only the sides that D >= -B rests on count."""
        floor, ceiling = self.bounds.floor, self.bounds.ceiling
        low = [("student", student)] + ([("random play", random)] if self.settings.retain > 1 else [])
        high = [("teacher", teacher), ("random play", random)]
        broken = [f"{who} returned {value:.6g}, below the floor {floor:.6g}" for who, value in low if value < floor]
        broken += [
            f"{who} returned {value:.6g}, above the ceiling {ceiling:.6g}" for who, value in high if value > ceiling
        ]
        if not broken:
            return ""
        seed = proof_seeds(self.run_seed, self.episodes - 1, self.episodes)[0]
        return f"{broken[0]}, fixed before the proof (episode {self.episodes}, seed {seed}). Prove again with another seed and more bound episodes"

    def _triples(self, start: int, stop: int) -> Triples:
        columns = np.asarray(self.rows[start:stop], np.float64).reshape(-1, 3).T
        return Triples(*np.ascontiguousarray(columns))

    def _low(self) -> float:
        low = returns.retention_low(self._grid, self.settings.alpha)
        chance = min((row[2] for row in self.rows), default=math.inf)
        return (
            min(low, 1.0) if chance < self.bounds.floor else low
        )  # above 1, D rests on random returns above the floor

    def proof(self, task: Task, member: str, played_by: str, env_steps: int) -> Proof:
        """The record of the verdict, with everything needed to continue."""
        triples = self._triples(0, self.episodes)
        columns = (tuple(column.tolist()) for column in (triples.student, triples.teacher, triples.random))
        student, teacher, random = columns
        return Proof(
            task.name, member, played_by, self.settings.retain, self.settings.alpha, self.verdict or "not proved", self.reason, self.bounds,
            STREAM, tuple(proof_seeds(self.run_seed, 0, self.episodes)), student, teacher, random,
            self.log_wealth, returns.retention(triples), self._low(), env_steps, chosen_late=self.late,
        )  # fmt: skip


def _stored(proof: Proof) -> Triples:
    columns = (proof.student_returns, proof.teacher_returns, proof.random_returns)
    return Triples(*(np.asarray(column, np.float64) for column in columns))


def _chosen_late(previous: Proof | None, settings: ProveSettings) -> bool:
    """Whether this retention and level were chosen after episodes of the proof had been seen."""
    if previous is None or not previous.episodes:
        return False
    return previous.chosen_late or (previous.retain, previous.alpha) != (settings.retain, settings.alpha)


def _check_continues(
    previous: Proof | None, task: Task, member: str, played_by: str, bounds: Bounds, run_seed: int
) -> None:
    """Refuse to go on with the episodes of another proof."""
    if previous is None:
        return
    given = {"task": task.name, "member": member, "player": played_by, "floor": bounds.floor, "ceiling": bounds.ceiling}
    stored = dict(
        zip(given, (previous.task, previous.member, previous.played_by, previous.bounds.floor, previous.bounds.ceiling), strict=True)
    )  # fmt: skip
    for what, value in given.items():
        if stored[what] != value:
            raise InputError(
                f"the stored proof has {what} {stored[what]}, this one {value}: it cannot be continued. Prove anew with another seed, or into another file."
            )
    if list(previous.seeds) != proof_seeds(run_seed, 0, previous.episodes):
        raise InputError(
            f"the stored proof was played on other seeds than those of seed {run_seed}. Continue it with the seed it began with."
        )


def claim_of(retain: float) -> str:
    """The claim in words. At 1 the hypothesis that is rejected is E[S - T] <= 0, above it E[S - R] <= r E[T - R].

    >>> claim_of(0.95), claim_of(1.0)
    ('keeps >= 95 % of the teacher', 'is better than the teacher')
    """
    if retain < 1:
        return f"keeps >= {100 * retain:g} % of the teacher"
    return "is better than the teacher" + f", by >= {100 * (retain - 1):g} % of its gain over random play" * (
        retain > 1
    )
