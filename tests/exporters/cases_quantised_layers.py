"""Random policies with convolutions and gated memories in whole numbers: every target is held against SOME of them."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import quantised_cases as cases
from cases_export import observations, starts
from cases_layers import WHOLE_CASES
from gymnasium import spaces as S

from limbeck import seeding, spaces
from limbeck.contracts import BITS, Blueprint, Layer, Quantise, QuantisedGru, Shared, Spec, View
from limbeck.contracts.quantised import LARGEST_SUM
from limbeck.exporters import golden
from limbeck.runtimes.numpy import NumpyPolicy

ROWS = 40


def policy(space: gym.Space, *layers: Layer, heads: tuple[int, ...] = (3,), view: View = View(), seed: int = 0) -> Blueprint:  # fmt: skip
    """The layers with a readout behind them."""
    rng = seeding.generator(seed, "train", 92)
    acts: gym.Space = S.Discrete(heads[0]) if len(heads) == 1 else S.MultiDiscrete(list(heads))
    whole = layers if isinstance(layers[-1], Shared) else (*layers, cases.readout(rng, layers[-1].outputs, sum(heads), "int8"))  # fmt: skip
    return Blueprint(Spec(space, acts, "a task"), spaces.head_for(acts), whole, view)


def picture(width: str, activation: str, layout: str = "hwc", stride: tuple[int, int] = (1, 1), seed: int = 0) -> Blueprint:  # fmt: skip
    """7 x 6 x 3 through two convolutions and a dense layer."""
    rng = seeding.generator(seed, "train", 93)
    first = cases.conv(rng, (7, 6), (3, 2, 3, 5), activation, width, stride=stride, layout=layout)
    second = cases.conv(rng, first.out_size, (2, 2, 5, 3), activation, width)
    dense = cases.dense(rng, second.outputs, 4, activation, width)
    shape = (7, 6, 3) if layout == "hwc" else (3, 7, 6)
    return policy(S.Box(-3, 3, shape, np.float32), cases.quantise(rng, 1, 126), first, second, dense)


def remembering(width: str, n_in: int, size: int, times: int = 1, seed: int = 0) -> Blueprint:
    """A history of `times` rows into a memory."""
    rng = seeding.generator(seed, "train", 94)
    layers = (cases.quantise(rng, n_in, times), cases.gru(rng, n_in * times, size, width))
    return policy(S.Box(-3, 3, (n_in,), np.float32), *layers, view=View(history=times))


def special() -> dict[str, Blueprint]:
    """Windows that are read in place, memories in a row, agents, pictures too large for a stack."""
    rng = seeding.generator(0, "train", 95)

    def image(*layers: Layer, size: tuple[int, ...]) -> Blueprint:
        count = int(np.prod(size))
        return policy(S.Box(-3, 3, size, np.float32), cases.quantise(rng, 1, count), *layers)

    each = (
        cases.quantise(rng, 2, 24),
        cases.conv(rng, (4, 6), (2, 3, 2, 3), "relu", "int4", stride=(1, 2), layout="chw"),
        cases.readout(rng, 18, 3, "int4"),
    )
    agents = Shared(each, 2)
    wide = cases.conv(rng, (80, 81), (5, 5, 3, 2), "relu", "int8", stride=(7, 6))
    behind = cases.conv(rng, (5, 4), (2, 2, 2, 3), "tanh", "int8")
    return {
        "1 x 1": image(cases.conv(rng, (5, 4), (1, 1, 3, 4), "tanh", "int4"), size=(5, 4, 3)),
        "rows": image(cases.conv(rng, (5, 4), (1, 3, 3, 4), "relu", "int8", stride=(2, 1)), size=(5, 4, 3)),
        "whole width": image(cases.conv(rng, (6, 4), (3, 4, 2, 3), "relu", "int2", stride=(3, 1)), size=(6, 4, 2)),
        "whole image chw": image(cases.conv(rng, (3, 4), (3, 4, 2, 5), "hardtanh", "int8", stride=(1, 1), layout="chw"), size=(2, 3, 4)),
        "one channel chw": image(cases.conv(rng, (4, 4), (1, 2, 1, 3), "relu", "int8", stride=(1, 2), layout="chw"), size=(1, 4, 4)),
        "last rows unseen": image(cases.conv(rng, (8, 9), (3, 3, 2, 4), "relu", "ternary", stride=(2, 4)), size=(8, 9, 2)),
        "agents": policy(S.Box(-3, 3, (96,), np.float32), agents, heads=(3, 3)),
        "large": image(wide, size=(80, 81, 3)),
        "picture then memory": image(behind, cases.gru(rng, 36, 6, "int8"), size=(5, 4, 2)),
        "memories": policy(
            S.Box(-3, 3, (5,), np.float32), cases.quantise(rng, 5, 1), cases.gru(rng, 5, 3, "int8"),
            cases.dense(rng, 3, 4, "tanh", "int4"), cases.gru(rng, 4, 5, "ternary"),
        ),
    }  # fmt: skip


def extreme_memory() -> Blueprint:
    """Gates whose sums are as large as they may be: memories that saturate, hold still and change sign."""
    rng = seeding.generator(0, "train", 96)
    n_in = size = 30
    most = np.where(rng.integers(0, 2, (n_in, 3 * size)) > 0, 127, -127).astype(np.float32)
    rest = np.where(rng.integers(0, 2, 3 * size) > 0, 1, -1) * np.float32(LARGEST_SUM - n_in * 127 * 127)
    by = np.full(3 * size, 255, np.float32)
    shift = rng.choice(np.float32([1, 8, 14, 18, 22, 31]), 3 * size)
    cell = QuantisedGru(most, most[:, ::-1], rest, rest[::-1], by, by, shift, shift[::-1])
    return policy(S.Box(-3, 3, (n_in,), np.float32), Quantise(np.zeros(n_in, np.float32), np.full(n_in, 127, np.float32)), cell)  # fmt: skip


PICTURES = {
    f"{width} {activation} {layout}": picture(width, activation, layout, (1 + k % 2, 1 + k % 3), seed=k)
    for k, (width, activation, layout) in enumerate(
        (w, a, lay) for w in BITS for a in cases.ACTIVATIONS for lay in ("hwc", "chw")
    )
}
MEMORIES = {
    f"memory {width} {size}": remembering(width, 2 + size % 3, size, 1 + k % 3, seed=k)
    for k, (width, size) in enumerate((w, s) for w in BITS for s in (3, 4, 7))
}
SPECIAL = {**special(), "extreme memory": extreme_memory(), "memory of one": remembering("int8", 3, 1, 2)}
EACH = ("int8 identity chw", "int4 relu hwc", "int2 tanh chw", "ternary hardtanh hwc")
EACH += ("memory int8 7", "memory int4 4", "memory int2 3", "memory ternary 7")
ALL = {**WHOLE_CASES, **PICTURES, **MEMORIES, **SPECIAL}
SOME = {**WHOLE_CASES, **{name: ALL[name] for name in EACH}, **SPECIAL}


def rows_of(policy: Blueprint, rows: int = ROWS) -> golden.Golden:
    """What numpy answers to rows lived one after the other, with episodes that begin on the way."""
    space = policy.spec.observation_space
    if space.dtype != np.float32:
        return golden.label(NumpyPolicy(policy), observations(space, rows), starts(rows))
    flat = cases.observations(spaces.flat_size(space, View()), rows)
    return golden.label(NumpyPolicy(policy), flat.reshape(rows, *(space.shape or ())), starts(rows))
