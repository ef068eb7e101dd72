"""Run a Blueprint in numpy: the reference every other runtime is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck import distributions, spaces
from limbeck.contracts import (
    Array,
    Blueprint,
    Conv,
    Dense,
    Floats,
    Gru,
    Gsde,
    Head,
    Layer,
    Lstm,
    Norm,
    Normaliser,
    Observation,
    Parallel,
    PolicyOutput,
    Pool,
    QuantisedConv,
    QuantisedGru,
    Shared,
    Sparse,
    Spec,
    State,
    Terms,
    Tree,
    View,
    memory_of,
)
from limbeck.distributions import sigmoid
from limbeck.runtimes.pictures import padded, patches, sliding
from limbeck.runtimes.whole import nearest_level, quantise, quantised, quantised_conv, quantised_gru_step, readout

BEFORE = ".linear"  # behind a layer's name: what it gives before its activation
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
    "softplus": lambda x: np.logaddexp(0, x).astype(x.dtype),
}


def _gelu(x: Array) -> Array:
    return (0.5 * x * (1 + _erf(x / np.sqrt(2)))).astype(x.dtype)


def _erf(x: Array) -> Array:
    """The error function: SciPy's, and where there is numpy alone (one file, the small wheel) Python's own, number by number."""
    try:
        from scipy.special import erf
    except ImportError:
        return np.vectorize(math.erf, otypes=[np.float64])(x)
    return np.asarray(erf(x))


class NumpyPolicy:
    """A Blueprint that plays, and shows what `captured` layers give (names as in `layer_shapes`)."""

    def __init__(self, blueprint: Blueprint, captured: Sequence[str] = ()) -> None:
        self.blueprint, self._captured = blueprint, frozenset(captured)
        self._obs_size = spaces.flat_size(blueprint.spec.observation_space, blueprint.view)

    @property
    def spec(self) -> Spec:
        return self.blueprint.spec

    @property
    def head(self) -> Head:
        return self.blueprint.head

    def initial_state(self, batch: int) -> State:
        blueprint = self.blueprint
        state: State = {}
        if blueprint.view.history > 1:
            state["history"] = np.zeros((batch, (blueprint.view.history - 1) * self._obs_size), np.float32)
        for name, size in (*memory_of(blueprint.layers), *memory_of(blueprint.value_layers, "value.")):
            state[name] = np.zeros((batch, size), np.float32)
        return state

    def __call__(self, obs: Observation, state: State, first: NDArray[np.bool_]) -> PolicyOutput:
        space, view = self.spec.observation_space, self.blueprint.view
        return self.on_flat(spaces.flatten(obs, space, view), state, first, spaces.mask_of(obs, view))

    def on_flat(
        self, flat: Floats, state: State, first: NDArray[np.bool_], mask: NDArray[np.bool_] | None = None
    ) -> PolicyOutput:
        """The same from flat observations [B, O], the view's keys and indices already applied, and action masks [B, W]."""
        blueprint, after = self.blueprint, dict(state)
        x = flat if blueprint.normaliser is None else normalised(blueprint.normaliser, flat)
        if blueprint.view.history > 1:
            x = windowed(x, state["history"], first, blueprint.view)
            after["history"] = x[:, self._obs_size :]
        value = None
        if blueprint.value_layers:
            value = _forward(blueprint.value_layers, x, state, after, first, "value.")[:, 0]
        features: dict[str, Array] = dict.fromkeys(self._captured, x)
        params = _forward(blueprint.layers, x, state, after, first, features=features)
        if mask is not None:
            params = distributions.masked(params, mask)
        return PolicyOutput(params, after, value, features=features)


def _forward(
    layers: Sequence[Layer],
    x: Floats,
    state: State,
    after: State,
    first: NDArray[np.bool_],
    prefix: str = "",
    features: dict[str, Array] | None = None,
) -> Floats:
    """The chain on rows x; fills in those `features` that are asked for by their names."""
    shown = features or {}
    for i, layer in enumerate(layers):
        if (name := f"layers.{i}{BEFORE}") in shown and isinstance(layer, (Dense, Conv, Norm)):
            shown[name] = _picture(layer, apply(replace(layer, activation="identity"), x))
        x = stepped(layer, f"{prefix}{layer.kind}{i}", x, state, after, first)
        if (name := f"layers.{i}") in shown:
            shown[name] = _picture(layer, x)
    return x


def normalised(norm: Normaliser, x: Floats) -> Floats:
    """The equation stands at `contracts.Normaliser`."""
    x = (x - norm.mean) / norm.scale
    return (np.clip(x, -norm.clip, norm.clip) if math.isfinite(norm.clip) else x).astype(np.float32, copy=False)


def windowed(x: Floats, past: Floats, first: NDArray[np.bool_], view: View) -> Floats:
    """[B, H O] the rows [B, O] behind the H - 1 before them; where an episode begins these are the row again, or zeros."""
    fresh = np.tile(x, view.history - 1) if view.padding == "first" else np.float32(0)
    return np.concatenate([np.where(first[:, None], fresh, past), x], axis=1)


def stepped(
    layer: Any, name: str, x: Floats, state: Mapping[str, Array], after: State, first: NDArray[np.bool_]
) -> Floats:
    """One layer on rows [B, inputs]; what it remembers under `name` is read from `state` and put into `after`."""
    if layer.kind not in _STEP:
        return apply(layer, x)
    ends, step = _STEP[layer.kind]
    held = [np.where(first[:, None], np.float32(0), state[name + end]) for end in ends]
    shown, *kept = step(layer, x, *held)
    after.update(zip([name + end for end in ends], kept, strict=True))
    return shown


def layer_shapes(layers: Sequence[Layer]) -> dict[str, tuple[int, ...]]:
    """What a policy can show of its layers, one row each: `layers.0` is the first layer's output, [n], or of convolutions
    and pools [channels, height, width]; `layers.0.linear` the same before its activation, where it has one."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, layer in enumerate(layers):
        shape: tuple[int, ...] = (layer.outputs,)
        if isinstance(layer, (Conv, Pool, QuantisedConv)):
            channels = layer.channels if isinstance(layer, Pool) else int(layer.weight.shape[3])
            shape = (channels, *layer.out_size)
        if isinstance(layer, (Dense, Conv, Norm)) and layer.activation != "identity":
            shapes[f"layers.{i}{BEFORE}"] = shape
        shapes[f"layers.{i}"] = shape
    return shapes


def _picture(layer: Layer, rows: Floats) -> Floats:
    """Rows of a layer of pictures with their channels first, as torch has them; others as they are."""
    if not isinstance(layer, (Conv, Pool, QuantisedConv)):
        return rows
    return np.ascontiguousarray(rows.reshape(len(rows), *layer.out_size, -1).transpose(0, 3, 1, 2))


def apply(layer: Layer, x: Floats) -> Floats:
    """A layer without memory on rows: [B, inputs] -> [B, outputs]."""
    if layer.kind not in _APPLY:
        raise TypeError(f"a {layer.kind} layer needs memory")
    return _APPLY[layer.kind](layer, x)


def _dense(layer: Dense, x: Floats) -> Floats:
    return ACTIVATE[layer.activation](x @ layer.weight + layer.bias)


def _conv(layer: Conv, x: Floats) -> Floats:
    return ACTIVATE[layer.activation](_convolve(layer, x)).reshape(len(x), -1)


def _norm(layer: Norm, x: Floats) -> Floats:
    centred = x - x.mean(axis=1, keepdims=True)
    spread = np.sqrt((centred**2).mean(axis=1, keepdims=True) + np.float32(layer.epsilon))
    return ACTIVATE[layer.activation](centred / spread * layer.weight + layer.bias)


def _gsde(layer: Gsde, x: Floats) -> Floats:
    mean = np.clip(x @ layer.weight + layer.bias, -layer.limit, layer.limit)
    log_std = np.float32(0.5) * np.log((x**2) @ (layer.spread**2) + np.float32(layer.epsilon))
    return np.concatenate([mean, log_std], axis=1).astype(np.float32)


def _parallel(layer: Parallel, x: Floats) -> Floats:
    pairs = zip(layer.branches, layer.spans, strict=True)
    return np.concatenate([_chain(branch, x[:, begin:end]) for branch, (begin, end) in pairs], axis=1)


def _shared(layer: Shared, x: Floats) -> Floats:
    return _chain(layer.layers, x.reshape(len(x) * layer.count, -1)).reshape(len(x), -1)


def _tree(layer: Tree, x: Floats) -> Floats:
    return layer.rows[leaf_of(layer, x)]


def _sparse(layer: Sparse, x: Floats) -> Floats:
    return layer.offset + sums(layer.terms, x)


def sums(terms: Terms, x: Floats) -> Floats:
    """[B, S] sums of a few terms, added one after the other, so that other runtimes can repeat every rounding."""
    if terms.filled:
        x = np.concatenate([x, np.zeros((len(x), 1), np.float32)], axis=1)
    with np.errstate(invalid="ignore", over="ignore"):  # infinite observations: NaN, which goes right
        total: Floats = x[:, terms.place[0]] * terms.weight[0]
        for place, weight in zip(terms.place[1:], terms.weight[1:], strict=True):
            total += x[:, place] * weight
    return total


def leaf_of(tree: Tree, x: Floats) -> NDArray[np.int64]:
    """[B] the leaf that each row reaches."""
    left = sums(tree.terms, x) <= tree.threshold
    children, rows = np.array(tree.children), np.arange(len(x))
    node = children[0, 1 - left[:, 0].astype(np.int64)]
    while (asked := node >= 0).any():
        at = np.maximum(node, 0)
        node = np.where(asked, children[at, 1 - left[rows, at].astype(np.int64)], node)
    return ~node


def _chain(layers: Sequence[Layer], x: Floats) -> Floats:
    for layer in layers:
        x = apply(layer, x)
    return x


def _convolve(layer: Conv, x: Floats) -> Floats:
    """[B, inputs] -> [B, out height, out width, out channels], as one matrix product over all windows."""
    *kernel, out = layer.weight.shape
    seen = patches(x, layer.size, kernel, layer.stride, layer.layout, layer.padding)
    product: Floats = seen.reshape(-1, seen.shape[-1]) @ layer.weight.reshape(-1, out)
    product += layer.bias
    return product.reshape(*seen.shape[:3], out)


def _pool(layer: Pool, x: Floats) -> Floats:
    image = x.reshape(len(x), *layer.size, layer.channels)
    seen = sliding(padded(image, layer.padding, np.nan), layer.window, layer.stride)
    best = np.nanmax(seen, axis=(-2, -1)) if layer.method == "max" else np.nanmean(seen, axis=(-2, -1))
    return np.ascontiguousarray(best, np.float32).reshape(len(x), -1)


def gru_step(layer: Gru, x: Floats, hidden: Floats) -> Floats:
    """h' for inputs [B, in] and hidden [B, H]; the equation stands at `contracts.Gru`."""
    from_x, from_h = x @ layer.weight_x + layer.bias_x, hidden @ layer.weight_h + layer.bias_h
    (xr, xz, xn), (hr, hz, hn) = np.split(from_x, 3, axis=1), np.split(from_h, 3, axis=1)
    reset, update = sigmoid(xr + hr), sigmoid(xz + hz)
    new = np.tanh(xn + reset * hn)
    return ((1 - update) * new + update * hidden).astype(np.float32)


def lstm_step(layer: Lstm, x: Floats, hidden: Floats, cell: Floats) -> tuple[Floats, Floats]:
    """(h', c') for inputs [B, in], hidden and cell [B, H]; the equation stands at `contracts.Lstm`."""
    gates = np.split(x @ layer.weight_x + hidden @ layer.weight_h + layer.bias, 4, axis=1)
    enter, keep, leave = (sigmoid(gates[k]) for k in (0, 1, 3))
    cell = (keep * cell + enter * np.tanh(gates[2])).astype(np.float32)
    return (leave * np.tanh(cell)).astype(np.float32), cell


def _gru(layer: Gru, x: Floats, hidden: Floats) -> tuple[Floats, ...]:
    hidden = gru_step(layer, x, hidden)
    return hidden, hidden


def _lstm(layer: Lstm, x: Floats, hidden: Floats, cell: Floats) -> tuple[Floats, ...]:
    hidden, cell = lstm_step(layer, x, hidden, cell)
    return hidden, hidden, cell


def _quantised_gru(layer: QuantisedGru, x: Floats, memory: Floats) -> tuple[Floats, ...]:
    memory = quantised_gru_step(layer, x, memory)
    return nearest_level(memory), memory


# A layer with memory, by its kind: how its vectors' names end, and what gives its output and then these vectors.
_STEP: dict[str, tuple[tuple[str, ...], Callable[..., tuple[Floats, ...]]]] = {
    "gru": (("",), _gru),
    "lstm": ((".h", ".c"), _lstm),
    "quantised_gru": (("",), _quantised_gru),
}
_APPLY: dict[str, Callable[[Any, Floats], Floats]] = {  # a layer without memory, by its kind
    "dense": _dense,
    "conv": _conv,
    "pool": _pool,
    "norm": _norm,
    "gsde": _gsde,
    "parallel": _parallel,
    "shared": _shared,
    "tree": _tree,
    "sparse": _sparse,
    "quantise": quantise,
    "quantised": quantised,
    "quantised_conv": quantised_conv,
    "readout": readout,
}
