"""The settings of every stage, each with its default and what it means."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


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
    # "blend, kl" (trb) is above it there by less than three collections can tell
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
    loss: str = "auto"  # a sum of terms (objective.parse); auto: by the teacher's head (rows in limbeck.losses.AUTO)
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
    enabled: bool = True  # docs/results.md, stage 2: rows before and after polish (fewer generations there)
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
class CompressionSettings:
    """Of the steps of `compress`."""

    members: tuple[str, ...] = ()  # names, such as mlp-64x64-s0, that are compressed; (): all chosen ones that can
    gradient_steps: int = 1600  # of imitation on the stored rows after each step
    learning_rate: float = 3e-3  # at a step's beginning; cosine to a hundredth of it


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
    devices: tuple[str, ...] = ("cortex-m0", "cortex-m4f")  # measured for the report where gcc and QEMU have them


@dataclass(frozen=True)
class ReportSettings:
    gallery: Literal["few", "all", "off"] = "few"  # whose disagreements are shown: what ships and what failed, or all
    gallery_episodes: int = 4  # of the student, in which they are looked for
    gallery_frames: int = 6  # of a member, costliest first
    track: tuple[str, ...] = ()  # tensorboard, wandb, mlflow: written into the run's tracking/ as it goes on


@dataclass(frozen=True)
class StressSettings:
    """Teacher and student under disturbances, side by side (docs/proof.md)."""

    episodes: int = 0  # of each disturbance and level, for teacher and student; 0: none is played
    disturbances: tuple[str, ...] = ()  # names of limbeck.proof.DISTURBANCES; (): all that the task allows


@dataclass(frozen=True)
class SearchSettings:
    """What `limbeck search` looks through, and within which budgets. Everything else is the recipe's."""

    trials: int = 64  # candidates that are trained
    population: int = 8  # candidates of one pass: one method, the same play and minibatches, one family
    rungs: tuple[int, ...] = (3, 12)  # rounds of imitation at each fidelity
    keep: float = 0.5  # share of a pass that goes on to its next rung
    sampler: str = "TPESampler"  # as Optuna names it
    storage: str = "journal"  # or sqlite:///FILE
    max_bytes: int | None = None  # of a candidate's weights as they are stored
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
