"""Random policies with every kind of layer, nested ones and images included, and with action masks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import quantised_cases as whole
from cases_export import CONTINUOUS, MIXED, blueprint, dense, normal, observations, starts
from gymnasium import spaces as S

from limbeck import seeding, spaces
from limbeck.contracts import (
    Blueprint,
    Conv,
    Dense,
    Gru,
    Gsde,
    HeadKind,
    Layer,
    Lstm,
    Norm,
    Normaliser,
    Parallel,
    Pool,
    Quantise,
    Readout,
    Shared,
    Spec,
    View,
)
from limbeck.runtimes.numpy import NumpyPolicy

RNG = seeding.generator(5, "train", 78)
HWC, CHW = S.Box(0, 255, (11, 10, 3), np.uint8), S.Box(0, 255, (2, 9, 12), np.uint8)
FRAME = S.Box(0, 255, (8, 7), np.uint8)
SEEN = S.Dict(
    {"image": S.Box(0, 255, (6, 7, 2), np.uint8), "vector": S.Box(-2, 2, (5,), np.float32), "bit": S.Discrete(2)}
)
MASKED = S.Dict({"action_mask": S.MultiBinary(5), "state": S.Box(-2, 2, (4,), np.float32), "kind": S.Discrete(3)})
SMALL = S.Box(-2, 2, (6,), np.float32)


def conv(size: tuple[int, int], kernel: tuple[int, int, int, int], activation: str = "relu", **options: Any) -> Conv:
    weight = normal(RNG, kernel, 1.2 / np.sqrt(np.prod(kernel[:3])))
    return Conv(weight, normal(RNG, kernel[3:], 0.3), size, activation=activation, **options)


def drawn(n_in: int, n_out: int, activation: str = "tanh") -> Dense:
    return dense(RNG, n_in, n_out, activation)


def norm(size: int, activation: str = "identity") -> Norm:
    return Norm(normal(RNG, (size,), 1.0), normal(RNG, (size,), 0.5), 1e-5, activation)


def gru(n_in: int, size: int) -> Gru:
    return Gru(*(normal(RNG, shape, 0.4) for shape in ((n_in, 3 * size), (size, 3 * size), (3 * size,), (3 * size,))))


def lstm(n_in: int, size: int, spread: float = 0.5) -> Lstm:
    return Lstm(*(normal(RNG, shape, spread) for shape in ((n_in, 4 * size), (size, 4 * size), (4 * size,))))


def gsde(n_in: int, n: int, limit: float = np.inf) -> Gsde:
    return Gsde(normal(RNG, (n_in, n), 0.8), normal(RNG, (n,), 0.3), np.exp(normal(RNG, (n_in, n), 0.5)), limit)


def policy(
    observation_space: gym.Space,
    *layers: Layer,
    action_space: gym.Space = S.Discrete(4),
    kind: HeadKind | None = None,
    view: View = View(),
    scale: float | None = None,
) -> Blueprint:
    """The layers, then a dense one to the head where the last does not fit it; `scale` divides the observations."""
    head, width = spaces.head_for(action_space, kind), spaces.flat_size(observation_space, view)
    if layers[-1].outputs != head.width:
        layers = (*layers, drawn(layers[-1].outputs, head.width, "identity"))
    norms = None
    if scale is not None:
        norms = Normaliser(np.zeros(width, np.float32), np.full(width, scale, np.float32))
    return Blueprint(Spec(observation_space, action_space, "a task"), head, layers, view, norms)


def nested() -> Blueprint:
    """Branches inside of branches inside of a shared network."""
    inner = Parallel(((drawn(2, 3), norm(3)), (), (Shared((drawn(1, 2),), 2),)), ((0, 2), (1, 2), (0, 2)), 2)
    outer = Parallel(((inner, drawn(8, 5)), (drawn(1, 4, "relu"),)), ((0, 2), (2, 3)), 3)
    return policy(SMALL, Shared((outer, drawn(9, 20, "relu"), drawn(20, 2, "identity")), 2), norm(4), drawn(4, 18))


def seen() -> Blueprint:
    """The extractors of a Dict observation: keys sorted, bit (2), image (84), vector (5)."""
    first = conv((6, 7), (3, 3, 2, 18))
    first = replace(first, weight=first.weight / np.float32(128))  # as a folded normaliser leaves it
    pictures = (first, Pool((4, 5), 18, (2, 2), (2, 2)), drawn(72, 16, "relu"))
    return policy(
        SEEN, Parallel((pictures, (drawn(5, 9), norm(9, "relu")), ()), ((2, 86), (86, 91), (0, 2)), 91), drawn(27, 17)
    )


def fleet() -> Blueprint:
    """One convolution over a picture per agent."""
    each = (conv((4, 4), (2, 2, 1, 3), "tanh"), Pool((3, 3), 3, (2, 2), (1, 1), "mean"), drawn(12, 3, "identity"))
    return policy(S.Box(-1, 1, (3, 4, 4), np.float32), Shared(each, 3), action_space=S.MultiDiscrete([3, 3, 3]))


def masked(**options: Any) -> Blueprint:
    return blueprint(S.Discrete(5, start=-1), observation_space=MASKED, **options)


# ---------------------------------------------------------------- in whole numbers


def alike(channels: int, times: int, middle: float = 128, steps: float = 1.0) -> Quantise:
    """One range for each channel, the same for every pixel or step."""
    offset = middle + np.arange(channels, dtype=np.float32)
    return Quantise(offset.astype(np.float32), np.full(channels, steps, np.float32), times)


def _undecided(made: Blueprint) -> Blueprint:
    """The policy with sums of its readout about zero, so that its actions differ."""
    if not isinstance(last := made.layers[-1], Readout):
        return made
    last = replace(last, scale=np.full(last.outputs, 1e-3, np.float32), bias=np.zeros(last.outputs, np.float32))
    made = replace(made, layers=(*made.layers[:-1], last))
    played = NumpyPolicy(made)
    seen = observations(made.spec.observation_space, 40)
    said = played(seen, played.initial_state(40), starts(40)).params
    bias = np.round(-1e3 * said.mean(0)).astype(np.float32)
    return replace(made, layers=(*made.layers[:-1], replace(last, bias=bias)))


def _whole_cases() -> dict[str, Blueprint]:
    rng = seeding.generator(6, "train", 78)
    hwc = whole.conv(rng, (11, 10), (3, 4, 3, 5), "relu", "int8", stride=(2, 1))
    behind = whole.conv(rng, hwc.out_size, (2, 2, 5, 6), "tanh", "int4", stride=(1, 2))
    chw = whole.conv(rng, (9, 12), (4, 3, 2, 9), "hardtanh", "ternary", stride=(2, 2), layout="chw")
    steps = whole.conv(rng, (5, 1), (3, 1, 6, 8), "identity", "int2")
    each = whole.conv(rng, (4, 4), (2, 2, 1, 3), "tanh", "int8")
    agent = (alike(1, 16, 0, 100), each, whole.dense(rng, 27, 7, "relu", "int4"), whole.readout(rng, 7, 3, "int8"))
    agent = _undecided(policy(S.Box(-1, 1, (4, 4), np.float32), *agent, action_space=S.Discrete(3))).layers
    small = whole.quantise(rng, 6)
    return {
        "whole conv hwc": policy(HWC, alike(3, 110), hwc, behind, whole.readout(rng, behind.outputs, 4, "int8")),
        "whole conv chw": policy(CHW, alike(1, 216), chw, whole.dense(rng, chw.outputs, 11, "tanh", "int2"),
                                 whole.readout(rng, 11, 4, "int4")),
        "whole conv over history": policy(SMALL, alike(6, 5, -2, 40), steps, whole.readout(rng, 24, 4, "ternary"),
                                          view=View(history=5)),
        "whole gru": policy(SMALL, small, whole.dense(rng, 6, 9, "relu", "int8"), whole.gru(rng, 9, 7, "int8"),
                            whole.dense(rng, 7, 5, "tanh", "int4"), whole.readout(rng, 5, 4, "int8")),
        "whole gru first and last": policy(SMALL, alike(6, 3, 0, 60), whole.gru(rng, 18, 5, "int4"),
                                           whole.gru(rng, 5, 3, "int2"), whole.readout(rng, 3, 4, "int8"),
                                           view=View(history=3, padding="zero")),
        "whole picture and memory": policy(HWC, alike(1, 330), hwc, whole.gru(rng, hwc.outputs, 6, "ternary"),
                                           whole.readout(rng, 6, 4, "int8")),
        "whole agents": policy(S.Box(-1, 1, (3, 4, 4), np.float32), Shared(agent, 3),
                               action_space=S.MultiDiscrete([3, 3, 3])),
    }  # fmt: skip


# Exact to the last bit in every target that takes them.
WHOLE_CASES = {name: _undecided(made) for name, made in _whole_cases().items()}
LAYER_CASES: dict[str, Blueprint] = {
    **WHOLE_CASES,
    "conv hwc": policy(
        HWC,
        conv((11, 10), (3, 4, 3, 17), stride=(2, 1), padding=(1, 0, 2, 1)),
        conv((5, 10), (2, 2, 17, 5), "tanh"),
        scale=255.0,
    ),
    "conv chw": policy(
        CHW,
        conv((9, 12), (4, 3, 2, 32), stride=(2, 2), layout="chw", padding=(0, 1, 1, 0)),
        Pool((4, 6), 32, (3, 2), (1, 2), "max", (1, 1, 0, 1)),
        Pool((4, 3), 32, (2, 2), (1, 1), "mean", (0, 1, 1, 0)),
        drawn(32 * 12, 16),
        scale=255.0,
    ),
    "conv of frames": policy(
        FRAME,
        conv((8, 7), (3, 3, 3, 8), layout="chw"),
        view=View(history=3, padding="zero"),
        scale=128.0,
    ),
    "conv over history": policy(
        SMALL, conv((5, 1), (3, 1, 6, 16), "elu"), conv((3, 1), (2, 1, 16, 4)), view=View(history=5)
    ),
    "pool of raw numbers": policy(S.Box(-1, 1, (5, 5, 2), np.float32), Pool((5, 5), 2, (2, 3), (2, 1), "mean")),
    "norm": policy(SMALL, norm(6), drawn(6, 33, "relu"), norm(33, "silu"), drawn(33, 7), norm(7, "tanh")),
    "lstm": policy(SMALL, drawn(6, 9, "relu"), lstm(9, 7)),
    "lstm first and last": policy(SMALL, lstm(6, 18), gru(18, 5), lstm(5, 4, 3.0)),
    "lstm with zero history": policy(SMALL, lstm(18, 6), view=View(history=3, padding="zero"), scale=2.0),
    "gsde": policy(SMALL, drawn(6, 18), gsde(18, 3), action_space=CONTINUOUS, kind="gaussian"),
    "gsde squashed": policy(SMALL, drawn(6, 8), gsde(8, 3, 1.5), action_space=CONTINUOUS, kind="squashed"),
    "parallel": seen(),
    "parallel of parts": policy(MIXED, Parallel(((drawn(5, 4),), (), ()), ((0, 5), (3, 9), (9, 14)), 14)),
    "nested": nested(),
    "shared": fleet(),
    "masked": masked(view=View(mask="action_mask")),
    "masked q": masked(kind="q", view=View(mask="action_mask", history=2, indices=(5, 0, 2)), clip=2.0),
    "masked keys": masked(view=View(keys=("state",), mask="action_mask", history=3, padding="zero"), gru=4),
    "masked choices": blueprint(
        S.MultiDiscrete([3, 2]), observation_space=MASKED, view=View(keys=("kind", "state"), mask="action_mask")
    ),
    "masked bits": blueprint(S.MultiBinary(5), observation_space=MASKED, view=View(mask="action_mask")),
}  # fmt: skip
