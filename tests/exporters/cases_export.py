"""Random policies of every kind, and observations to lead them through."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium import spaces as S

from limbeck import seeding, spaces
from limbeck.contracts import Blueprint, Dense, Gru, HeadKind, Layer, Normaliser, Observation, Spec, View

BOX = S.Box(-3, 3, (5,), np.float32)
MIXED = S.Dict(
    {
        "zeta": S.Box(-1, 1, (2, 2), np.float32),
        "alpha": S.Discrete(3, start=2),
        "mid": S.MultiDiscrete([2, 3]),
        "bits": S.MultiBinary(2),
    }
)
CONTINUOUS = S.Box(np.array([-1.0, -0.5, 0.0], np.float32), np.array([1.0, 2.0, 0.3], np.float32))
HALF_OPEN = S.Box(np.array([-0.2, -np.inf], np.float32), np.array([np.inf, 0.1], np.float32))


def blueprint(
    action_space: gym.Space,
    kind: HeadKind | None = None,
    *,
    hidden: tuple[int, ...] = (20, 18),
    activation: str = "relu",
    observation_space: gym.Space = BOX,
    view: View = View(),
    clip: float | None = None,
    gru: int | None = None,
    seed: int = 0,
    name: str = "policy",
) -> Blueprint:
    """A random policy; `clip` adds a normaliser, `gru` a recurrent layer after the dense ones."""
    rng = seeding.generator(seed, "train", 77)
    head = spaces.head_for(action_space, kind)
    width = spaces.flat_size(observation_space, view)
    normaliser = None
    if clip is not None:
        mean, scale = rng.normal(size=width).astype(np.float32), rng.uniform(0.2, 2, width).astype(np.float32)
        normaliser = Normaliser(mean, scale, clip)
    layers: list[Layer] = []
    size = width * view.history
    for out in hidden:
        layers.append(dense(rng, size, out, activation))
        size = out
    if gru is not None:
        layers.append(
            Gru(*(normal(rng, shape, 0.4) for shape in ((size, 3 * gru), (gru, 3 * gru), (3 * gru,), (3 * gru,))))
        )
        size = gru
    layers.append(dense(rng, size, head.width, "identity"))
    return Blueprint(Spec(observation_space, action_space, "a task"), head, tuple(layers), view, normaliser, name=name)


def normal(rng: np.random.Generator, shape: tuple[int, ...], size: float) -> np.ndarray:
    return (rng.normal(size=shape) * size).astype(np.float32)


def dense(rng: np.random.Generator, n_in: int, n_out: int, activation: str) -> Dense:
    return Dense(normal(rng, (n_in, n_out), 1.2 / np.sqrt(n_in)), normal(rng, (n_out,), 0.3), activation)


def observations(space: gym.Space, rows: int, seed: int = 0) -> Observation:
    """[rows, ...] samples of the space."""
    space.seed(seed)
    drawn = [space.sample() for _ in range(rows)]
    if isinstance(space, S.Dict):
        return {key: np.stack([d[key] for d in drawn]) for key in space.spaces}
    return np.stack(drawn)


def starts(rows: int, every: int = 7) -> np.ndarray:
    """[rows] first flags with resets inside."""
    first: np.ndarray = np.arange(rows) % every == 0
    return first


CASES: dict[str, Blueprint] = {
    "categorical": blueprint(S.Discrete(4, start=-2)),
    "q": blueprint(S.Discrete(3), "q", clip=np.inf),
    "multicategorical": blueprint(S.MultiDiscrete([3, 2, 4], start=[1, 0, -5])),
    "multicategorical matrix": blueprint(S.MultiDiscrete([[3, 2], [2, 2]])),
    "bernoulli": blueprint(S.MultiBinary(3)),
    "gaussian": blueprint(CONTINUOUS, "gaussian"),
    "gaussian half open": blueprint(HALF_OPEN, "gaussian"),
    "squashed": blueprint(CONTINUOUS, "squashed", clip=1.5),
    "deterministic": blueprint(CONTINUOUS, "deterministic"),
    "tanh matrix": blueprint(S.Box(-2, 3, (2, 2), np.float32), "tanh"),
    "linear": blueprint(S.Discrete(4), hidden=()),
    "tiny": blueprint(S.Discrete(4), hidden=(4,)),
    "odd widths": blueprint(S.Discrete(5), hidden=(67, 33, 17)),
    "wide end": blueprint(S.Discrete(40), hidden=(6, 64)),
    "indices": blueprint(S.Discrete(4), view=View(indices=(4, 0, 2))),
    "history": blueprint(S.Discrete(4), view=View(history=3), clip=2.0),
    "history of picked": blueprint(CONTINUOUS, "tanh", view=View(indices=(3, 1), history=2)),
    "dict": blueprint(S.Discrete(4), observation_space=MIXED),
    "dict view": blueprint(
        S.Discrete(4), observation_space=MIXED, view=View(keys=("zeta", "alpha"), indices=(6, 1, 0), history=2), clip=3.0
    ),
    "gru": blueprint(S.Discrete(4), hidden=(9,), gru=6),
    "gru first": blueprint(CONTINUOUS, "squashed", hidden=(), gru=16, clip=2.0),
    "gru with history": blueprint(S.Discrete(4), hidden=(17,), gru=2, view=View(history=2)),
    "activation sigmoid": blueprint(S.Discrete(4), hidden=(20,), activation="sigmoid", seed=3),
    **{f"activation {a}": blueprint(S.Discrete(4), activation=a) for a in ("identity", "tanh", "elu")},
    **{f"activation {a}": blueprint(S.Discrete(4), activation=a) for a in ("leaky_relu", "gelu", "silu", "hardtanh")},
    "activation softplus": blueprint(S.Discrete(4), activation="softplus"),
    "zero history": blueprint(S.Discrete(4), view=View(history=4, padding="zero"), clip=2.0),
    "zero history first": blueprint(S.Discrete(4), hidden=(16,), gru=3, view=View(history=2, padding="zero")),
}  # fmt: skip
