"""Every stage's settings, frozen and checked: no unknown key, every number in its range.

Options of the command line are text, so text that reads as the wanted type is taken ("3" for 3, "true" for True).
No torch, no gymnasium: `--help` and recipe checks need only this.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from limbeck.errors import InputError, printable, unknown

TIMED_ROUNDS = 2  # rounds that are timed before a time limit becomes a number of rounds
OBJECT = "python:"  # begins a recipe's teacher or env that was an object in Python
DEFAULT_STUDENTS = ("mlp:64x64", "mlp:32x32", "mlp:16x16", "mlp:8x8", "mlp:16", "mlp:8", "mlp:4", "linear")


@dataclass(frozen=True)
class TaskSettings:
    kwargs: dict[str, Any] = field(default_factory=dict)  # passed to gymnasium.make
    wrappers: tuple[str, ...] = ()  # names of limbeck.tasks.WRAPPERS, applied in order
    backend: Literal["gymnasium", "envpool"] = "gymnasium"  # of collection; proofs always play in gymnasium
    step_timeout: float = 60.0  # seconds one environment call may take


@dataclass(frozen=True)
class VerifySettings:
    episodes: int = 40  # per mode
    random_episodes: int = 40
    expect: float | None = None  # the return the teacher should reach
    accept: bool = False  # distill whatever was found


@dataclass(frozen=True)
class CollectSettings:
    slots: int = 16  # vector-environment slots, dealt among the members
    steps: int = 1024  # environment steps per round, all slots together
    driver: Literal["student", "teacher", "beta", "trb", "offline", "auto"] = "student"  # docs/results.md: student, kl
    # offline: the teacher plays the whole budget in the first rounds; auto: measured after them (stages.driving)
    teacher_rounds: int = 1  # first rounds driven by the teacher whatever the driver
    lmbda: float = 1.0  # share of the lanes that the driver has; the teacher drives the rest (named as in TRL)
    student_mode: Literal["greedy", "sampled"] = "greedy"  # how students act where they drive
    beta_schedule: Literal["linear", "exponential", "constant"] = "linear"  # 1 - i / beta_rounds, beta^i or beta
    beta_rounds: int = 6  # beta: linear 1 -> 0 over these rounds (Ross et al. 2011)
    beta: float = 0.5  # of the exponential and the constant schedule
    trust: float = 0.5  # trb: nats of KL(behaviour || student) allowed at first
    trust_share: float = 0.3  # trb: linear to 0 over this share of the rounds
    random_share: float = 0.0  # share of teacher-driven steps replaced by random actions


@dataclass(frozen=True)
class ImitateSettings:
    rounds: int = 12
    gradient_steps: int = 200  # Adam steps per round
    batch: int = 512
    learning_rate: float = 3e-3
    final_learning_rate: float = 3e-4  # cosine over the rounds
    loss: str = "auto"  # a sum of terms (objective.parse); auto: by the teacher's head (docs/results.md: student, kl)
    hard_weight: float = 0.0  # lambda of  lambda CE(hard label) + (1 - lambda) loss, where the task has hard labels
    task_weight: float | None = None  # the same in another convention:  loss + w CE  (see limbeck.losses.weights)
    kd_weight: float | None = None  # and in a third:  (1 - w) CE + w loss
    temperature: float | None = None  # None: 1 for policies, entropy-targeted for Q teachers
    entropy_target: float = 0.25  # share of log A that the mean entropy of softmax(Q / tau) is brought to
    beta: float = 0.5  # of the loss js: 0 forward KL, 1 reverse KL (named as in TRL)
    gap_power: float = 1.0  # of the weights of kl_gap and kl_surrogate_gap; 0.5 hedges where the critic is rough
    dkd_beta: float = 1.0  # weight of the actions beside the greedy one in dkd (8 for images)
    gradient_clip: float = 1.0  # per member
    sequence: int = 32  # T of recurrent students
    burn_in: int = 8  # first rows of a sequence that do not count, unless an episode starts there
    priority: float = 0.0  # rows are drawn ~ (disagreement + 0.001)^priority; 0: all alike, 0.6: Schaul et al. 2016
    shift: int = 0  # pixels that pictures move by at most in training (Kostrikov et al. 2020: 4 of 84)
    weight_decay: float = 0.0  # decoupled (Loshchilov & Hutter 2019)
    dropout: float = 0.0  # probability that a number of a hidden dense layer is 0 in training
    adversarial: float = 0.0  # weight of the loss at the worst input within adversarial_radius
    adversarial_radius: float = 0.05  # in standard deviations of each number; of an image's range for convolutions
    adversarial_steps: int = 3  # of gradient ascent
    average: float = 0.0  # decay of the running mean of the weights, which is raced and chosen; 0: none
    validation_share: float = 0.0  # of the episodes, kept out of training
    keep_best: bool = False  # each member leaves with the weights of its best validated round
    stop: Literal["never", "plateau", "validation"] = (
        "never"  # plateau: on fresh student states, before training on them
    )
    patience: int = 3  # rounds without gain after which a member no longer improves
    stop_gain: float = 0.02  # share of the loss that counts as a gain on a plateau
    inherit: str | None = None  # teacher, or a policy.safetensors: whose dense layers students are cut out of
    freeze: tuple[str, ...] = ()  # layers of inherited students that stay as they are: dense0, ..., head
    adapt: str | None = None  # r4: inherited weights stay, and of each layer a product of that rank is trained
    assistant: float = 0.0  # weight of the divergence from the next larger student (Mirzadeh et al. 2020: chains; 0.3)
    population: bool = False  # members of a size differ in factors on temperature and weights; the worst copy the best
    population_every: int = 2  # rounds between two copyings
    population_spread: float = 4.0  # factors lie between its inverse and it
    bellman_steps: int = 3  # n of Bellman targets, along the teacher's greedy actions; 1 after any other
    bellman_baseline: bool = (
        True  # less the teacher's V(s), which changes no action: students learn advantages, not levels
    )
    reward_scale: float = 1.0  # times the task's rewards: the units of the teacher's Q, if it learned from scaled ones


@dataclass(frozen=True)
class CriticSettings:
    """Action values of a teacher that states none, fitted to what was collected where a loss asks for them."""

    fit: bool = True  # False: such a loss is refused
    gamma: float = 0.99  # of the fitted values; the score itself is not discounted
    trace: float = 0.95  # lambda: 0 looks one step ahead, 1 as far as the teacher's own actions go
    members: int = 3  # drawings of random features, whose mean counts
    features: int = 128  # of a state
    action_features: int = 32  # of a state for each action in a list; fewer where the list is long
    ridge: float = 1e-3  # on their weights, per transition
    caution: float = 2.0  # standard errors by which the advantages that students learn are lowered
    gains: bool = (
        False  # True: students may follow a fit that calls an action better than the teacher; False: that is 0
    )
    rows: int = 32_768  # newest transitions that are fitted, whole rounds
    draws: int = 4  # teacher's actions per state where it plays continuous ones sampled
    episodes: int = 16  # of student and teacher on the same seeds, on which the fit's error is measured


@dataclass(frozen=True)
class RaceSettings:
    rounds: tuple[int, ...] = (4, 8)  # after these rounds the worse half of each size is dropped
    episodes: int = 8  # per member and race, the same seeds for all
    final_episodes: int = 32  # to choose the member of each size that is proved


@dataclass(frozen=True)
class GrowSettings:
    """Of trees and rules."""

    samples: int = 20_000  # rows drawn per round, in proportion to what a wrong action costs there (VIPER)
    power: float = 1.0  # of that cost: 0 draws evenly, 0.5 hedges
    keep: int = 16  # rules of the newest round that are raced
    final_episodes: int = 256  # of the last two in the race of all iterates


@dataclass(frozen=True)
class PolishSettings:
    enabled: bool = True
    max_parameters: int = 1000  # larger members are left as imitation made them
    generations: int = 20
    pairs: int = 12  # antithetic pairs per generation
    episodes: int = 8  # common start seeds per candidate and generation
    sigma: float = 0.08  # perturbation, times mean |weight| of the tensor (floor 0.1)
    learning_rate: float = 0.06  # times the same scale
    validate_every: int = 5  # generations between validations
    validation_episodes: int = 40
    horizon: int | None = None  # steps of an episode that a candidate plays; the teacher's value judges what it leaves


@dataclass(frozen=True)
class ProveSettings:
    retain: float = 0.95
    alpha: float = 0.05
    max_episodes: int = 1000
    chunk: int = 32  # episodes played between two looks
    bound_episodes: int = 1000  # random episodes that fix the floor
    bound_steps: int = 200_000  # at most this many environment steps for them


@dataclass(frozen=True)
class ExportSettings:
    targets: tuple[str, ...] = ("onnx", "c")
    golden_steps: int = 256


@dataclass(frozen=True)
class SearchSettings:
    """What `limbeck search` looks through, and within which budgets. Everything else is the recipe's."""

    trials: int = 64  # candidates that are trained
    population: int = 8  # candidates of one pass: one method, the same play and minibatches, one family
    rungs: tuple[int, ...] = (3, 12)  # rounds of imitation at each fidelity
    keep: float = 0.5  # share of a pass that goes on to its next rung
    sampler: str = "TPESampler"  # as Optuna names it
    storage: str = "journal"  # or sqlite:///FILE
    max_bytes: int | None = None  # of a candidate's weights, 4 bytes a number
    max_latency: float | None = None  # seconds, median of one step of its compiled C
    env_steps: int | None = None  # of all passes together; proofs are apart
    students: tuple[str, ...] = ()  # linear, mlp:*, gru:*, cnn:* or exact students; (): what the observation asks for
    depths: tuple[int, ...] = (1, 2, 3)  # dense layers of mlp:*, convolutions of cnn:* (at most two)
    widths: tuple[int, ...] = (2, 4, 8, 16, 32, 64)  # of dense layers and memories
    filters: tuple[int, ...] = (4, 8, 16)  # of convolutions
    activations: tuple[str, ...] = ("relu", "tanh")
    losses: tuple[str, ...] = ()  # as imitate.loss takes them; (): those that fit the teacher and need nothing else
    drivers: tuple[Literal["student", "teacher", "beta", "trb"], ...] = ("student", "teacher", "beta", "trb")
    learning_rates: tuple[float, float] = (1e-3, 1e-2)  # from, to, drawn by their logarithm
    polish: tuple[bool, ...] = (True, False)
    histories: tuple[int, ...] = ()  # frames a student sees; (): the recipe's, and 4 where the teacher has memory


@dataclass(frozen=True)
class Recipe:
    """A whole distillation. Written resolved into the run folder; `limbeck distill recipe.yaml` runs it again."""

    teacher: str
    env: str | None = None  # None only with `data`
    data: str | None = None  # recordings to imitate on where there is no environment: .npz, or a Minari data set
    data_sha256: str | None = None  # of the recordings, written into the run's recipe.yaml
    students: tuple[str, ...] = DEFAULT_STUDENTS
    seed: int = 0
    env_steps: int | None = None  # budget of collection steps; None: rounds x steps
    seconds: float | None = None  # budget of imitation; becomes a number of rounds that is recorded
    seconds_rounds: int | None = None  # that number, written into the run's recipe.yaml once it is known
    kind: str | None = None  # how to read the output of a callable, ONNX or Keras teacher: q, categorical, gaussian ...
    architecture: str | None = None  # of weights that do not say how to compute with them
    trust: str | None = None  # SHA-256 of a TorchScript or .pt2 teacher that may run, confined
    teacher_keys: tuple[str, ...] | None = None  # entries of a Dict observation the teacher sees; None: found out
    teacher_indices: tuple[int, ...] | None = None  # positions of the flat observation the teacher sees
    normaliser: str | None = None  # vec_normalize.pkl; None: one beside the teacher is used
    teacher_sha256: str | None = None
    threads: int = 1  # of torch; part of the run's identity
    gamma: float | None = None  # discount of the teacher's values; None: what its file states, else 0.99
    history: int = 1  # frames a student sees, with a GRU too
    noise: float = 0.0  # standard deviation added to what a student sees in training, in spreads of each number
    keys: tuple[str, ...] | None = None  # entries of a Dict observation the student sees; None: those of the teacher
    indices: tuple[int, ...] | None = None  # positions of the flat observation the student sees
    task: TaskSettings = TaskSettings()
    verify: VerifySettings = VerifySettings()
    collect: CollectSettings = CollectSettings()
    imitate: ImitateSettings = ImitateSettings()
    critic: CriticSettings = CriticSettings()
    race: RaceSettings = RaceSettings()
    grow: GrowSettings = GrowSettings()
    polish: PolishSettings = PolishSettings()
    prove: ProveSettings = ProveSettings()
    export: ExportSettings = ExportSettings()


_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 1), "env_steps": (1, 10**10), "seconds": (0.1, 10**7), "seconds_rounds": (TIMED_ROUNDS, 10**9), "threads": (1, 256), "gamma": (0, 1), "history": (1, 1024), "noise": (0, 100),
    "task.step_timeout": (0.1, 86400), "verify.episodes": (2, 100_000), "verify.random_episodes": (2, 100_000),
    "collect.slots": (1, 4096), "collect.steps": (1, 10**8), "collect.teacher_rounds": (0, 10**6), "collect.beta_rounds": (1, 10**6),
    "collect.trust": (0, 100), "collect.trust_share": (0, 1), "collect.random_share": (0, 1), "collect.lmbda": (0, 1), "collect.beta": (0, 1),
    "imitate.priority": (0, 2), "imitate.shift": (0, 64), "imitate.weight_decay": (0, 10), "imitate.dropout": (0, 0.95), "imitate.adversarial": (0, 100),
    "imitate.adversarial_radius": (1e-6, 10), "imitate.adversarial_steps": (1, 100), "imitate.average": (0, 0.99999),
    "imitate.validation_share": (0, 0.5), "imitate.patience": (1, 10**6), "imitate.stop_gain": (0, 1),
    "imitate.assistant": (0, 100), "imitate.population_every": (1, 10**6), "imitate.population_spread": (1, 1000),
    "imitate.rounds": (1, 10**6), "imitate.gradient_steps": (1, 10**7), "imitate.batch": (1, 10**6),
    "imitate.learning_rate": (1e-8, 10), "imitate.final_learning_rate": (0, 10), "imitate.hard_weight": (0, 1), "imitate.task_weight": (0, 1e6), "imitate.kd_weight": (0, 1),
    "imitate.beta": (0, 1), "imitate.gap_power": (0, 4), "imitate.dkd_beta": (0, 1000),
    "imitate.temperature": (1e-6, 1e6), "imitate.entropy_target": (0.001, 0.999), "imitate.gradient_clip": (1e-6, 1e6),
    "imitate.sequence": (1, 4096), "imitate.burn_in": (0, 4095), "imitate.bellman_steps": (1, 10**4), "imitate.reward_scale": (1e-9, 1e9), "race.episodes": (1, 10**5), "race.final_episodes": (1, 10**5),
    "grow.samples": (1, 10**8), "grow.power": (0, 4), "grow.keep": (1, 10**5), "grow.final_episodes": (1, 10**5),
    "critic.gamma": (0, 0.99999), "critic.trace": (0, 1), "critic.members": (1, 64), "critic.features": (1, 10**4), "critic.action_features": (1, 10**4), "critic.ridge": (1e-12, 1e3), "critic.caution": (0, 100),
    "critic.rows": (16, 10**8), "critic.draws": (1, 1024), "critic.episodes": (2, 10**5),
    "polish.max_parameters": (0, 10**6), "polish.generations": (1, 10**5), "polish.pairs": (1, 10**5), "polish.episodes": (1, 10**5),
    "polish.sigma": (1e-6, 10), "polish.learning_rate": (1e-6, 10), "polish.validate_every": (1, 10**5), "polish.validation_episodes": (1, 10**5), "polish.horizon": (1, 10**6),
    "prove.retain": (0.01, 1.5), "prove.alpha": (1e-6, 0.5), "prove.max_episodes": (1, 10**7), "prove.chunk": (1, 10**5),
    "prove.bound_episodes": (10, 10**6), "prove.bound_steps": (1000, 10**10), "export.golden_steps": (8, 10**5),
}  # fmt: skip


def named(what: str, value: str) -> str:
    """A recipe's teacher or env where it can be found by its name; refuses what stands for a Python object."""
    if value.startswith(OBJECT):
        raise InputError(
            f"the {what} of this run was a Python object ({printable(value[len(OBJECT) :])}), which cannot be found by name. "
            f"Pass it again to limbeck.distill, or make it importable and name it package.module:attribute."
        )
    return value


def recipe_from(values: Mapping[str, Any]) -> Recipe:
    """A checked recipe from plain nested values (YAML, flags, Python). All problems are reported at once.

    >>> recipe_from({"teacher": "t.zip", "env": "CartPole-v1"}).prove.retain
    0.95
    """
    _refuse_unknown(values, Recipe, "")
    from pydantic import TypeAdapter, ValidationError

    try:
        adapter = TypeAdapter(Recipe)
        recipe: Recipe = adapter.validate_python(dict(values))
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, p['loc']))} = {printable(p['input'], 60)!r}: {p['msg']}" for p in error.errors()
        ]
        raise InputError(
            f"the recipe has {len(problems)} wrong value{'s' * (len(problems) > 1)}: {'; '.join(problems)}."
        ) from error
    _check_ranges(recipe)
    _refuse_objects(recipe.task.kwargs, "task.kwargs")
    return recipe


def with_options(values: Mapping[str, Any], options: Sequence[str]) -> dict[str, Any]:
    """Nested values with `stage.key=value` options put in.

    >>> with_options({"env": "CartPole-v1"}, ["collect.slots=8"])
    {'env': 'CartPole-v1', 'collect': {'slots': '8'}}
    """
    merged: dict[str, Any] = {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}
    for option in options:
        path, equals, value = option.partition("=")
        parts = path.split(".")
        if not equals or len(parts) > 2:
            raise InputError(
                f"option {printable(option)!r} is not understood. Allowed: KEY=VALUE or STAGE.KEY=VALUE, for example collect.slots=8."
            )
        if len(parts) == 2 and parts[0] not in _stages():
            raise unknown("stage", parts[0], _stages())
        parsed: Any = (
            tuple(v for v in value.split(",") if v)
            if _is_tuple(parts)
            else (None if value.lower() == "none" else value)
        )
        if len(parts) == 1:
            merged[path] = parsed
        else:
            stage = merged.get(parts[0])
            merged[parts[0]] = {**(stage if isinstance(stage, dict) else {}), parts[1]: parsed}
    return merged


def _stages() -> list[str]:
    return [f.name for f in dataclasses.fields(Recipe) if dataclasses.is_dataclass(f.default)]


def _is_tuple(parts: list[str]) -> bool:
    owner: Any = Recipe
    if len(parts) == 2:
        owner = next((type(f.default) for f in dataclasses.fields(Recipe) if f.name == parts[0]), Recipe)
    return any(f.name == parts[-1] and str(f.type).startswith("tuple") for f in dataclasses.fields(owner))


def _refuse_unknown(values: Mapping[str, Any], owner: type, prefix: str) -> None:
    fields = {f.name: f for f in dataclasses.fields(owner)}
    for key, value in values.items():
        if key not in fields:
            raise unknown(f"recipe key{' in ' + prefix if prefix else ''}", str(key), fields)
        default = fields[key].default
        if dataclasses.is_dataclass(default) and isinstance(value, Mapping):
            _refuse_unknown(value, type(default), key)
    if not prefix:
        _refuse_missing(values)


def _refuse_missing(values: Mapping[str, Any]) -> None:
    if values.get("teacher") is None:
        raise InputError("the recipe lacks teacher. Needed: teacher (a file), and env (an environment id) or data.")
    if values.get("env") is None and values.get("data") is None:
        raise InputError(
            "the recipe has neither env nor data. Needed: env (an environment id to play in), or data (recordings, where there is none)."
        )


def _refuse_objects(value: Any, where: str) -> None:
    """What cannot be written into recipe.yaml cannot be run again from it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _refuse_objects(key, f"a key of {where}")
            _refuse_objects(inner, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _refuse_objects(inner, where)
    elif type(value) not in (type(None), bool, int, float, str):
        raise InputError(
            f"{printable(where)} is {printable(type(value).__name__)}, which a recipe cannot hold. Allowed: numbers, text, lists and tables; "
            "for anything else pass env=FUNCTION that builds the environment."
        )


def _check_ranges(recipe: Recipe) -> None:
    problems = []
    for path, (low, high) in _RANGES.items():
        value: Any = recipe
        for part in path.split("."):
            value = getattr(value, part)
        if value is not None and not (math.isfinite(value) and low <= value <= high):
            problems.append(f"{path} = {value:g}, allowed {low:g} to {high:g}")
    if recipe.verify.expect is not None and not math.isfinite(recipe.verify.expect):
        problems.append(f"verify.expect = {recipe.verify.expect:g}, allowed any finite return")
    if any(done < 1 for done in recipe.race.rounds):
        problems.append(f"race.rounds = {', '.join(map(str, recipe.race.rounds))}, allowed rounds from 1")
    if not recipe.students:
        problems.append("students is empty, allowed at least one such as mlp:16x16")
    if recipe.imitate.burn_in >= recipe.imitate.sequence:
        problems.append(
            f"imitate.burn_in = {recipe.imitate.burn_in}, allowed less than imitate.sequence = {recipe.imitate.sequence}"
        )
    if problems:
        raise InputError(f"out of range: {'; '.join(problems)}. Change the recipe or the flags.")
