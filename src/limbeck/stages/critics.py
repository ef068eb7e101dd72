"""What actions are worth to the teacher: its own action values or critic, else a critic fitted from the run's transitions.

A fit learns about an action where somebody took it. Students' mistakes are such rows; where the teacher drives alone, give
collect.random_share, or the advantages of the actions it never takes are extrapolated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from limbeck import critic as fitting
from limbeck import distributions, proof, seeding, spaces, storage
from limbeck.collection import TEACHER
from limbeck.contracts import EXACT, FITTED, OWN, Array, Floats, Head, Mode, Observation, Policy, Task, Teacher
from limbeck.critic import Fitted, Steps
from limbeck.dataset import Dataset
from limbeck.distributions import FORBIDDEN
from limbeck.errors import InputError, printable
from limbeck.losses import LOSSES
from limbeck.objective import Term
from limbeck.proof import Fidelity, Judge
from limbeck.proof.regret import Error
from limbeck.runs import Run
from limbeck.settings import CriticSettings, Recipe
from limbeck.stages import driving, values
from limbeck.stages.opening import records_of
from limbeck.stages.scene import Progress, Scene
from limbeck.students.family import Family
from limbeck.tasks import RecordedTask, take_rows

FILE = "critic.safetensors"  # of a run that fitted one: the newest
WIDEST = 4096  # numbers of an observation that a fit takes; pictures of 84 x 84 are beyond it
CURVE = 0.1  # half ranges of the action to either side, over which a critic's second difference is taken
NEAR = 1e-4  # half ranges within which two actions count as the same
FLAT = 1e-9  # a mean gap below it says that no action is better than another
ROWS = 1024  # rows at once


# ---------------------------------------------------------------- what a run has


def own_source(teacher: Teacher) -> str | None:
    """Where the teacher's own Q is from, None where it states none."""
    if not values.states_q(teacher) and teacher.critic is None:
        return None
    return EXACT if teacher.exact or getattr(teacher.policy, "exact", False) is True else OWN


def missing(recipe: Recipe, task: Task, teacher: Teacher, terms: Sequence[Term]) -> str | None:
    """What the run lacks for action values, None if it lacks nothing."""
    if any("q" in LOSSES[term.name].needs for term in terms) and not values.states_q(teacher):
        return f"action values; those of this teacher ({printable(teacher.info.algorithm)}) only rank the actions. Needed: DQN, QR-DQN, C51, or kind='q'"
    if own_source(teacher) is not None:
        return None
    who = f"this teacher ({printable(teacher.info.format)}, {printable(teacher.info.algorithm)}) states no Q"
    own = "Needed: action values (DQN, QR-DQN, C51, kind='q')" if teacher.policy.head.discrete else "Needed: SAC, TD3, DDPG or TQC with its critic in the file"  # fmt: skip
    if not recipe.critic.fit:
        return f"what actions are worth: {who}, and critic.fit is off. {own}, or critic.fit=true"
    records = records_of(recipe, task, teacher)
    if records is not None and not (records.has_rewards and records.action is not None):
        return f"what actions are worth: {who}, and these recordings lack rewards or actions to fit it from. {own}, recordings with both, or the environment"  # fmt: skip
    if task.spec.agents > 1 or teacher.policy.head.kind in ("multicategorical", "bernoulli"):
        return (
            f"what one action of one agent is worth: {who}, and a fit is for one choice or one continuous action. {own}"
        )
    if (size := spaces.flat_size(task.spec.observation_space)) > WIDEST:
        return f"what actions are worth: {who}, and a fit takes observations of at most {WIDEST:,} numbers, not {size:,}. {own}"
    return None


# ---------------------------------------------------------------- labels


def labels(
    here: Scene, family: Family, data: Dataset, terms: Sequence[Term], done: Progress
) -> tuple[dict[str, torch.Tensor], Progress]:
    """For a list of actions "advantage" [N, A] = Q_T - V_T in units of reward, and "gap" [], the mean over rows of its
    largest less its smallest allowed value. For continuous ones, at the teacher's greedy executed action and per unit of
    executed action: "critic_grad" [N, n] = dQ/da, "critic_hess" [N, n] = d2Q/da2 of each number, at most 0, and
    "critic_scale" [] = 1 / mean |Q - mean Q|."""
    needs = {need for term in terms for need in LOSSES[term.name].needs}
    found: dict[str, torch.Tensor] = {}
    fitted: Fitted | None = None
    if own_source(here.teacher) is None:
        fitted = _kept(here, data)
        if driving.plays(here, done.round):  # billed where rows are new, so that a resumed run has the same bill
            done = replace(done, critic_fits=done.critic_fits + fitted.members)
    if "regret" in needs:
        advantage = _advantages(here, data, fitted)
        gap = float(np.mean(advantage.max(axis=1) - advantage.min(axis=1), dtype=np.float64))
        found |= {"advantage": torch.from_numpy(advantage), "gap": torch.tensor(gap if gap > FLAT else 1.0)}
    if "critic" in needs:
        found |= _slopes(here, data, fitted)
    return found, done


def _kept(here: Scene, data: Dataset) -> Fitted:
    """The run's critic if it was fitted to these rounds, else a new one: rounds that play nothing need no other."""
    kept = load(here.run.folder, data.rounds)
    if kept is not None:
        return kept
    fitted = fit(here, data)
    save(here.run, fitted, data.rounds)
    here.run.tell(
        "critic", f"fitted to {data.rounds} rounds of play, residual {fitted.residual:.3g} in units of reward"
    )
    return fitted


def _advantages(here: Scene, data: Dataset, fitted: Fitted | None) -> Floats:
    """[N, A], cautious where fitted; an action that is not allowed gets the worst of the allowed ones."""
    caution = here.run.recipe.critic.caution
    rows = np.array(data.column("teacher/params"))
    if fitted is None:
        return _bounded(rows, rows)
    inputs, policy = (
        _inputs(here.task, data.observations(), _values(data, here.teacher.policy.head)),
        _policy(here.teacher.policy.head, rows, here.mode),
    )
    parts = [
        fitted.advantage(torch.from_numpy(inputs[i : i + ROWS]), torch.from_numpy(policy[i : i + ROWS]), caution)
        for i in range(0, len(rows), ROWS)
    ]
    advantage = torch.cat(parts).numpy().astype(np.float32)
    return _bounded(advantage if here.run.recipe.critic.gains else np.minimum(advantage, 0), rows)


def _bounded(advantage: Floats, rows: Floats) -> Floats:
    allowed = rows > FORBIDDEN / 2
    worst = np.where(allowed, advantage, np.inf).min(axis=1, keepdims=True)
    return np.where(allowed, advantage, worst).astype(np.float32)


# ---------------------------------------------------------------- fitting


def fit(here: Scene, data: Dataset) -> Fitted:
    """The critic after the data set's newest round: a function of the data set and its number of rounds alone."""
    settings, head = here.run.recipe.critic, here.teacher.policy.head
    parts: list[dict[str, Array]] = []
    rows = 0
    for shard in reversed(data.shards):
        if parts and rows + len(shard["first"]) > settings.rows:
            break
        parts.insert(0, shard)
        rows += len(shard["first"])
    recent = Dataset(data.folder, data.task, parts)
    rng = seeding.generator(here.seed, "critic", data.rounds)
    steps = steps_of(here.task, recent, head, here.mode, settings.draws, rng)
    if not steps.known.any():
        raise InputError(
            f"no critic can be fitted: no step of {here.task.name} has a known outcome, because every lane lasts one step. Raise collect.steps."
        )
    return fitting.fit(steps, settings, rng)


def steps_of(task: Task, data: Dataset, head: Head, mode: Mode, draws: int, rng: np.random.Generator) -> Steps:
    """The transitions of a data set. A step cut by a time limit or by the end of a lane or round has no known outcome."""
    rows = np.asarray(data.column("teacher/params"))
    ended = np.array(data.column("terminated"))
    goes_on = np.append(~np.asarray(data.first())[1:], False) & ~ended & ~np.asarray(data.column("truncated"))
    executed = np.asarray(data.column("executed")).reshape(len(rows), -1)
    taught = np.asarray(data.column("driver")) == TEACHER
    inputs = _inputs(task, data.observations(), _values(data, head))
    reward = np.asarray(data.column("reward"), np.float64)
    if head.discrete:
        taken = executed[:, 0].astype(np.int64) - np.asarray(head.start or 0, np.int64).reshape(-1)[0]
        policy = _policy(head, rows, mode)
        trace = np.where(taught, 1.0, np.take_along_axis(policy, taken[:, None], axis=1)[:, 0])
        return Steps(inputs, taken, policy, reward, goes_on, ended, trace)
    taken = to_halves(head, executed)
    drawn = _draws(head, rows, mode, draws, rng)
    same = (np.abs(taken[:, None] - drawn) < NEAR).all(axis=-1).any(axis=1)
    return Steps(inputs, taken, drawn, reward, goes_on, ended, (taught | same).astype(np.float64))


def _policy(head: Head, rows: Floats, mode: Mode) -> Floats:
    """[N, A] pi_T(a|s) as the teacher plays; rows are logits."""
    if mode == "greedy" or head.kind == "q":
        return np.eye(rows.shape[1], dtype=np.float32)[rows.argmax(axis=1)]
    return np.exp(distributions.log_softmax(rows))


def _draws(head: Head, rows: Floats, mode: Mode, draws: int, rng: np.random.Generator) -> Floats:
    """[N, S, n] the teacher's actions in half ranges."""
    random = mode == "sampled" and head.kind in ("gaussian", "squashed")
    acts = [distributions.act(head, rows, mode, rng) for _ in range(draws if random else 1)]
    return np.stack([to_halves(head, act.reshape(len(rows), -1)) for act in acts], axis=1)


def halves(head: Head) -> tuple[Floats, Floats]:
    """[n] middle and half range of the executed action; 0 and 1 where it has no bounds."""
    low, high = (bound.astype(np.float64) for bound in distributions.bounds(head))
    finite = np.isfinite(low) & np.isfinite(high) & (high > low)
    low, high = np.where(finite, low, -1.0), np.where(finite, high, 1.0)
    return ((low + high) / 2).astype(np.float32), ((high - low) / 2).astype(np.float32)


def to_halves(head: Head, executed: Array) -> Floats:
    middle, half = halves(head)
    return ((executed - middle) / half).astype(np.float32)


def _inputs(task: Task, obs: Observation, value: Array | None) -> Floats:
    """[N, F] the whole observation, and the teacher's own value of the state where it states one."""
    flat = np.array(spaces.flatten(obs, task.spec.observation_space))
    return flat if value is None else np.concatenate([flat, value[:, None].astype(np.float32)], axis=1)


def _values(data: Dataset, head: Head) -> Array | None:
    """[N] V as the teacher states it. Who needs a fit and has rows of kind q has scores, whose largest is no value."""
    return np.asarray(data.column(values.COLUMN)) if head.kind != "q" and data.has(values.COLUMN) else None


# ---------------------------------------------------------------- continuous actions


@dataclass(frozen=True)
class FittedCritic:
    """A fit as a function of observations; Q up to a constant per state, which no slope and no regret sees."""

    fitted: Fitted
    task: Task
    head: Head

    def of(self, inputs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        middle, half = (torch.from_numpy(part) for part in halves(self.head))
        return self.fitted.preference(inputs, (action - middle) / half)


def _slopes(here: Scene, data: Dataset, fitted: Fitted | None) -> dict[str, torch.Tensor]:
    head, rows = here.teacher.policy.head, np.asarray(data.column("teacher/params"))
    obs, value = data.observations(), _values(data, head)
    act = distributions.act(head, rows).reshape(len(rows), -1).astype(np.float32)
    slope, curve, levels = [], [], []
    for begin in range(0, len(rows), ROWS):
        part = slice(begin, begin + ROWS)
        q = _function(here, take_rows(obs, part), None if value is None else value[part], fitted)
        at = torch.from_numpy(act[part].copy())
        each = slopes(q, at, head)
        slope.append(each[0])
        curve.append(each[1])
        levels.append(each[2] if fitted is None else _level(here, fitted, take_rows(obs, part), value, part))
    level = torch.cat(levels).double()
    spread = float((level - level.mean()).abs().mean())
    scale = torch.tensor(1.0 / spread if spread > FLAT else 1.0)
    return {"critic_grad": torch.cat(slope), "critic_hess": torch.cat(curve), "critic_scale": scale}


def _level(here: Scene, fitted: Fitted, obs: Observation, value: Array | None, part: slice) -> torch.Tensor:
    return fitted.value(torch.from_numpy(_inputs(here.task, obs, None if value is None else value[part])))


def _function(here: Scene, obs: Observation, value: Array | None, fitted: Fitted | None) -> Any:
    """Executed actions [B, n] -> Q [B] at these observations."""
    if fitted is None:
        own = here.teacher.critic
        assert own is not None
        return lambda action: own(obs, action)
    inputs = torch.from_numpy(_inputs(here.task, obs, value))
    critic = FittedCritic(fitted, here.task, here.teacher.policy.head)
    return lambda action: critic.of(inputs, action)


def slopes(q: Any, at: torch.Tensor, head: Head) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dQ/da [B, n] by automatic differentiation, d2Q/da2 [B, n] at most 0, and Q [B] at executed actions [B, n].

    The curvature is a second difference over a tenth of the half range to either side, moved inside the bounds: critics
    of ReLU units are flat almost everywhere, and their bends count only over a distance."""
    inside = at.clone().requires_grad_()
    level = q(inside)
    (slope,) = torch.autograd.grad(level.sum(), inside)
    middle, half = (torch.from_numpy(part) for part in halves(head))
    step = CURVE * half
    bounded = head.bounded
    centre = torch.clamp(at, middle - half + step, middle + half - step) if bounded else at
    curves = []
    with torch.no_grad():
        here = q(centre)
        for i in range(at.shape[1]):
            aside = torch.zeros_like(at)
            aside[:, i] = step[i]
            curves.append((q(centre + aside) + q(centre - aside) - 2 * here) / step[i] ** 2)
    curve = torch.stack(curves, dim=1).clamp_max(0.0)
    return slope.float(), curve.float(), level.detach()


# ---------------------------------------------------------------- the file of a run


def save(run: Run, fitted: Fitted, rounds: int) -> None:
    arrays = {name: value.numpy() for name, value in fitted.arrays.items()}
    meta = {"residual": json.dumps(fitted.residual), "rounds": json.dumps(rounds)}
    storage.write_arrays(run.folder / FILE, arrays, meta)


def load(folder: Path, rounds: int | None = None) -> Fitted | None:
    """The newest critic of a run, None where none was fitted, or none to the first `rounds` rounds of play."""
    if not (folder / FILE).exists():
        return None
    arrays, meta = storage.read_arrays(folder / FILE)
    if rounds is not None and json.loads(meta.get("rounds", "null")) != rounds:
        return None
    residual = json.loads(meta.get("residual", "null"))
    return Fitted(
        {name: torch.from_numpy(value) for name, value in arrays.items()}, math.nan if residual is None else residual
    )


# ---------------------------------------------------------------- regret of a finished student


def judge(here: Scene) -> Judge | None:
    """Who says what a student's actions cost; None where the rows themselves do, or nobody can."""
    if values.states_q(here.teacher):
        return None
    source, fitted = own_source(here.teacher), None
    if source is None:
        fitted = load(here.run.folder)
        if fitted is None:
            return None
        source = FITTED
    head, mode = here.teacher.policy.head, here.mode

    def cost(obs: Observation, rows: Floats, value: Array | None, acted: Array) -> NDArray[np.float64]:
        count = len(rows)
        if head.discrete:
            assert fitted is not None
            taken = (
                acted.reshape(count, -1)[:, 0].astype(np.int64) - np.asarray(head.start or 0, np.int64).reshape(-1)[0]
            )
            canonical = distributions.canonical(head, rows)[0]
            seen = torch.from_numpy(_inputs(here.task, obs, value))
            advantage = fitted.advantage(seen, torch.from_numpy(_policy(head, canonical, mode))).numpy()
            return -np.take_along_axis(advantage, taken[:, None], axis=1)[:, 0]
        q = _function(here, obs, value, fitted)
        own = distributions.act(head, rows).reshape(count, -1).astype(np.float32)
        with torch.no_grad():
            best, chosen = (q(torch.from_numpy(a)) for a in (own, acted.reshape(count, -1).astype(np.float32)))
        return (best - chosen).double().numpy()

    gamma = here.run.recipe.critic.gamma if fitted is not None else values.discount(here.run.recipe, here.teacher)
    return Judge(source, cost, gamma)


def watched(here: Scene, student: Policy, seeds: Sequence[int]) -> tuple[Fidelity, dict[str, Any]]:
    """A student held against its teacher on its own states, and where a fitted critic judged, how wrong it was:
    `proof.regret.Error` over critic.episodes episodes, the teacher's play of the same seeds once per run."""
    by = judge(here)
    settings: CriticSettings = here.run.recipe.critic
    paired = by is not None and by.source == FITTED and not isinstance(here.task, RecordedTask)
    if paired and here.task.proof_episodes is None:
        seeds = [seeding.episode_seed(here.seed, "fidelity", i) for i in range(max(settings.episodes, len(seeds)))]
    found = named(here.teacher, proof.fidelity(student, here.teacher.policy, here.task, seeds, by))
    if by is None or not paired or found.predicted is None or found.returns is None:
        unknown = {"regret": f"{FITTED} (error unknown: nothing can be played)"}
        return (replace(found, sources=unknown) if by is not None and by.source == FITTED else found), {}

    def play() -> dict[str, Any]:
        returns, steps = proof.discounted(here.teacher.policy, here.task, list(seeds), here.mode, here.seed, by.gamma)
        return {"returns": returns.tolist(), "critic_steps": steps}

    teacher = here.run.record("critic", play)["returns"]
    error: Error = proof.error_of(found.predicted, found.returns, np.array(teacher), here.seed)
    here.run.tell(
        "critic",
        f"regret predicts a loss of {error.predicted:.4g}, measured {error.measured:.4g} (discounted by {by.gamma:g}, {error.episodes} episodes): {error}",
    )
    return replace(found, sources={"regret": str(error)}), {"critic": error}


def named(teacher: Teacher, found: Fidelity) -> Fidelity:
    """With the source of its regret; without a regret that is made of scores which are no values."""
    if teacher.policy.head.kind != "q":
        return found
    source = own_source(teacher)
    if source is None:
        kept: Mapping[str, float] = {
            name: value for name, value in found.values.items() if name not in ("regret", "weighted_agreement")
        }
        return replace(found, values=kept, sources={})
    return replace(found, sources={"regret": source}) if "regret" in found.values else found
