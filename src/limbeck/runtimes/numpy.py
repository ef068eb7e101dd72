"""Run a Blueprint in numpy: the reference every other runtime is compared with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from limbeck import spaces
from limbeck.contracts import Array, Blueprint, Dense, Floats, Gru, Head, Layer, Observation, PolicyOutput, Spec, State
from limbeck.distributions import sigmoid

ACTIVATE: dict[str, Callable[[Array], Array]] = {
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "leaky_relu": lambda x: np.where(x > 0, x, np.float32(0.01) * x),
    "gelu": lambda x: _gelu(x),
    "silu": lambda x: x * sigmoid(x),
    "hardtanh": lambda x: np.clip(x, -1, 1),
}


def _gelu(x: Array) -> Array:
    from scipy.special import erf

    return (0.5 * x * (1 + erf(x / np.sqrt(2)))).astype(x.dtype)


class NumpyPolicy:
    """A Blueprint that plays."""

    def __init__(self, blueprint: Blueprint) -> None:
        self.blueprint = blueprint
        self._obs_size = spaces.flat_size(blueprint.spec.observation_space, blueprint.view)

    @property
    def spec(self) -> Spec:
        return self.blueprint.spec

    @property
    def head(self) -> Head:
        return self.blueprint.head

    def initial_state(self, batch: int) -> State:
        state: State = {}
        if self.blueprint.view.history > 1:
            state["history"] = np.zeros((batch, (self.blueprint.view.history - 1) * self._obs_size), np.float32)
        for i, layer in enumerate(self.blueprint.layers):
            if isinstance(layer, Gru):
                state[f"gru{i}"] = np.zeros((batch, layer.size), np.float32)
        return state

    def __call__(self, obs: Observation, state: State, first: NDArray[np.bool_]) -> PolicyOutput:
        flat = spaces.flatten(obs, self.spec.observation_space, self.blueprint.view)
        return self.on_flat(flat, state, first)

    def on_flat(self, flat: Floats, state: State, first: NDArray[np.bool_]) -> PolicyOutput:
        """The same from flat observations [B, O] with the view's keys and indices already applied."""
        blueprint, after = self.blueprint, dict(state)
        x = flat
        if (norm := blueprint.normaliser) is not None:
            x = np.clip((x - norm.mean) / norm.scale, -norm.clip, norm.clip).astype(np.float32)
        if blueprint.view.history > 1:
            past = np.where(first[:, None], np.tile(x, blueprint.view.history - 1), state["history"])
            x = np.concatenate([past, x], axis=1)
            after["history"] = x[:, self._obs_size :]
        value = _forward(blueprint.value_layers, x, {}, {}, first)[:, 0] if blueprint.value_layers else None
        params = _forward(blueprint.layers, x, state, after, first)
        return PolicyOutput(params, after, value)


def _forward(layers: tuple[Layer, ...], x: Floats, state: State, after: State, first: NDArray[np.bool_]) -> Floats:
    for i, layer in enumerate(layers):
        if isinstance(layer, Dense):
            x = ACTIVATE[layer.activation](x @ layer.weight + layer.bias)
        else:
            hidden = np.where(first[:, None], np.float32(0), state[f"gru{i}"])
            x = after[f"gru{i}"] = gru_step(layer, x, hidden)
    return x


def gru_step(layer: Gru, x: Floats, hidden: Floats) -> Floats:
    """h' for inputs [B, in] and hidden [B, H]; the equation stands at `contracts.Gru`."""
    from_x, from_h = x @ layer.weight_x + layer.bias_x, hidden @ layer.weight_h + layer.bias_h
    (xr, xz, xn), (hr, hz, hn) = np.split(from_x, 3, axis=1), np.split(from_h, 3, axis=1)
    reset, update = sigmoid(xr + hr), sigmoid(xz + hz)
    new = np.tanh(xn + reset * hn)
    return ((1 - update) * new + update * hidden).astype(np.float32)
