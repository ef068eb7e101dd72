"""Keras layers as those of a blueprint: one function per layer that is read, all others are refused by name.

Pictures are channels-last, as Keras keeps them, and so are ours; gates are reordered; what only matters in training
(Dropout, noise) is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, Literal

import numpy as np

from limbeck.contracts import Array, Conv, Dense, Gru, Layer, Lstm, Norm, Normaliser, Parallel, Pool
from limbeck.errors import printable
from limbeck.teachers.archive import Archive
from limbeck.teachers.keras_config import MERGES, Chain, Entry, Merge
from limbeck.teachers.keras_flow import Flow, flag, last_axis, number, pair, vector, whole
from limbeck.teachers.tensors import floats

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
_IDENTITIES = (
    "Dropout", "SpatialDropout1D", "SpatialDropout2D", "GaussianDropout", "GaussianNoise", "AlphaDropout",
    "ActivityRegularization",
)  # fmt: skip


def is_keras(archive: Archive) -> bool:
    return CONFIG in archive.members and WEIGHTS in archive.members


def build(flow: Flow, chain: Chain) -> tuple[Layer, ...]:
    """The layers of a chain. Raises InputError for what is not read."""
    for link in chain:
        entry = link.entry if isinstance(link, Merge) else link
        if flow.ended and not (entry.kind == "Activation" and entry.config.get("activation") == "linear"):
            raise flow.wrong(entry, "a layer after a softmax")
        if isinstance(link, Merge):
            _merge(flow, link)
        else:
            _lay(flow, link)
        if max(math.prod(flow.shape), *flow.shape) > 2**24:
            raise flow.wrong(entry, f"its output has the shape {flow.shape}")
    flow.flush()
    flow.laid_out()
    return tuple(_narrow(layer) for layer in flow.layers)


def _lay(flow: Flow, entry: Entry) -> None:
    if entry.kind in _IDENTITIES:
        return
    make = LAYERS.get(entry.kind)
    if make is None:
        raise flow.wrong(
            entry, f"this layer is not read; those that are: {', '.join(sorted(LAYERS))}, {', '.join(MERGES)}"
        )
    _check_common(flow, entry)
    make(flow, entry)


def _merge(flow: Flow, link: Merge) -> None:
    """Branches side by side; for Add, a layer of ones sums them."""
    flow.flush()
    if len(flow.shape) != 1 or flow.sequence:
        raise flow.wrong(link.entry, "branches of pictures or sequences")
    if link.entry.kind == "Concatenate":
        last_axis(flow, link.entry)
    width = flow.shape[0]
    branches, spans, sizes = [], [], []
    for chain in link.branches:
        begin, end, inner = 0, width, chain
        if chain and isinstance(chain[0], Entry) and chain[0].kind == "InputLayer":
            (begin, end), inner = flow.spans[chain[0].name], chain[1:]
        branch = Flow(flow.file, flow.variables, (end - begin,), spans=flow.spans)
        branches.append(build(branch, inner))
        if len(branch.shape) != 1 or branch.ended:
            raise flow.wrong(link.entry, "a branch that ends in a picture or a softmax")
        if branch.normaliser is not None:
            raise flow.wrong(link.entry, "a Normalization layer inside a branch; put it before the branches part")
        spans.append((begin, end))
        sizes.append(branch.shape[0])
    flow.layers.append(Parallel(tuple(branches), tuple(spans), width))
    flow.shape = (sum(sizes),)
    if link.entry.kind == "Add":
        if len(set(sizes)) != 1:
            raise flow.wrong(link.entry, f"a sum of rows of {sizes} numbers")
        flow.layers.append(
            Dense(np.tile(np.eye(sizes[0], dtype=np.float32), (len(sizes), 1)), np.zeros(sizes[0], np.float32))
        )
        flow.shape = (sizes[0],)


def _narrow(layer: Layer) -> Layer:
    changed: dict[str, Any] = {
        f.name: floats(v) for f in fields(layer) if isinstance(v := getattr(layer, f.name), np.ndarray)
    }
    return replace(layer, **changed)


def _check_common(flow: Flow, entry: Entry) -> None:
    policy = entry.config.get("dtype")
    name = (
        policy.get("config", {}).get("name")
        if isinstance(policy, dict) and isinstance(policy.get("config"), dict)
        else policy
    )
    if name not in (None, "float32", "float64"):
        raise flow.wrong(entry, f"it computes in {printable(name, 40)}, only float32 is read")
    if entry.config.get("data_format") not in (None, "channels_last"):
        raise flow.wrong(
            entry, f"data format {printable(entry.config.get('data_format'), 40)}, only channels_last is read"
        )
    if entry.config.get("quantization_config") is not None:
        raise flow.wrong(entry, "it is quantised")


# ---------------------------------------------------------------- layers


def _dense(flow: Flow, entry: Entry) -> None:
    units, inputs = whole(flow, entry, "units"), flow.shape[-1]
    kernel, bias = _kernel(flow, entry, (inputs, units))
    if len(flow.shape) == 3:
        weight, bias = flow.absorbed(kernel[None, None], bias)
        flow.layers.append(Conv(weight, bias, flow.shape[:2], layout=flow.first()))
    else:
        weight, bias = flow.absorbed(kernel, bias)
        flow.layers.append(Dense(weight, bias))
    flow.shape = (*flow.shape[:-1], units)
    flow.activate(entry, entry.config.get("activation", "linear"))


def _kernel(flow: Flow, entry: Entry, shape: tuple[int, ...]) -> tuple[Array, Array]:
    wanted = {"kernel": shape, **({"bias": shape[-1:]} if flag(flow, entry, "use_bias", True) else {})}
    found = flow.variables.read(entry, wanted)
    return found["kernel"], found.get("bias", np.zeros(shape[-1]))


def _conv2d(flow: Flow, entry: Entry) -> None:
    _conv(flow, entry, pair(flow, entry, "kernel_size"), 2)


def _conv1d(flow: Flow, entry: Entry) -> None:
    size = pair(flow, entry, "kernel_size")
    if size[1] != 1 or len(flow.shape) != 3 or flow.shape[1] != 1:
        raise flow.wrong(entry, "Conv1D runs over histories of vectors")
    _conv(flow, entry, size, 1)


def _conv(flow: Flow, entry: Entry, window: tuple[int, int], dims: int) -> None:
    if len(flow.shape) != 3:
        raise flow.wrong(entry, f"a convolution over {flow.shape}")
    if pair(flow, entry, "dilation_rate", [1] * dims) != (1, 1) or entry.config.get("groups", 1) != 1:
        raise flow.wrong(entry, "dilation and groups are not read")
    filters, channels, stride = whole(flow, entry, "filters"), flow.shape[2], pair(flow, entry, "strides", [1] * dims)
    around = _padding(flow, entry, window, stride)
    kernel, bias = _kernel(flow, entry, (*window[:dims], channels, filters))
    if flow.pending is not None and any(around) and flow.pending[1].any():
        flow.flush()  # the zeros around the picture are put there after the shift
    weight, bias = flow.absorbed(kernel.reshape(*window, channels, filters), bias)
    conv = Conv(weight, bias, flow.shape[:2], stride, around, layout=flow.first())
    if problem := conv.problem():
        raise flow.wrong(entry, problem)
    flow.layers.append(conv)
    flow.shape = (*conv.out_size, filters)
    flow.activate(entry, entry.config.get("activation", "linear"))


def _padding(flow: Flow, entry: Entry, window: tuple[int, int], stride: tuple[int, int]) -> tuple[int, int, int, int]:
    """Zeros at the top, bottom, left, right. `same` puts the odd one last."""
    stated = entry.config.get("padding", "valid")
    if stated == "valid":
        return 0, 0, 0, 0
    if stated == "causal" and entry.kind == "Conv1D":
        return window[0] - 1, 0, 0, 0
    if stated != "same":
        raise flow.wrong(entry, f"padding {printable(stated, 40)}")
    extra = [max((math.ceil(n / s) - 1) * s + k - n, 0) for n, k, s in zip(flow.shape[:2], window, stride, strict=True)]
    return extra[0] // 2, extra[0] - extra[0] // 2, extra[1] // 2, extra[1] - extra[1] // 2


def _pool(method: Literal["max", "mean"], everything: bool = False) -> Callable[[Flow, Entry], None]:
    def make(flow: Flow, entry: Entry) -> None:
        if len(flow.shape) != 3:
            raise flow.wrong(entry, f"pooling over {flow.shape}")
        if flow.pending is not None and method == "max" and (flow.pending[0] <= 0).any():
            flow.flush()  # the largest of x is not that of -x
        flow.laid_out()
        window = flow.shape[:2] if everything else pair(flow, entry, "pool_size", [2, 2])
        stride = window if everything else pair(flow, entry, "strides", list(window))
        around = (0, 0, 0, 0) if everything else _padding(flow, entry, window, stride)
        pool = Pool(flow.shape[:2], flow.shape[2], window, stride, method, around)
        if problem := pool.problem():
            raise flow.wrong(entry, problem)
        flow.layers.append(pool)
        if everything and flag(flow, entry, "keepdims", False):
            raise flow.wrong(entry, "keepdims is not read")
        flow.shape = (flow.shape[2],) if everything else (*pool.out_size, flow.shape[2])

    return make


def _flatten(flow: Flow, entry: Entry) -> None:
    if flow.sequence:
        raise flow.wrong(entry, "flattening a sequence of unknown length")
    flow.laid_out()
    if flow.pending is not None and len(flow.shape) == 3:
        (factor, shift), places = flow.pending, flow.shape[0] * flow.shape[1]
        flow.pending = np.tile(factor, places), np.tile(shift, places)
    flow.shape = (math.prod(flow.shape),)


def _activation(flow: Flow, entry: Entry) -> None:
    flow.activate(entry, entry.config.get("activation"))


def _relu(flow: Flow, entry: Entry) -> None:
    slope = number(flow, entry, "negative_slope", 0.0)
    if (
        entry.config.get("max_value") is not None
        or number(flow, entry, "threshold", 0.0) != 0
        or slope not in (0.0, 0.01)
    ):
        raise flow.wrong(entry, "only the plain ReLU and a negative slope of 0.01 are read")
    flow.apply("leaky_relu" if slope else "relu")


def _leaky(flow: Flow, entry: Entry) -> None:
    slope = number(flow, entry, "alpha" if "alpha" in entry.config else "negative_slope", 0.3)
    if not math.isclose(slope, 0.01, rel_tol=1e-6):
        raise flow.wrong(entry, f"a negative slope of {slope:g}; only 0.01 is read")
    flow.apply("leaky_relu")


def _elu(flow: Flow, entry: Entry) -> None:
    if number(flow, entry, "alpha", 1.0) != 1.0:
        raise flow.wrong(entry, "only alpha 1 is read")
    flow.apply("elu")


def _softmax(flow: Flow, entry: Entry) -> None:
    last_axis(flow, entry)
    flow.activate(entry, "softmax")


def _rescaling(flow: Flow, entry: Entry) -> None:
    size = flow.shape[-1]
    scale, offset = (vector(flow, entry, entry.config.get(k, d), size) for k, d in (("scale", 1.0), ("offset", 0.0)))
    flow.affine(scale, offset)


def _normalization(flow: Flow, entry: Entry) -> None:
    last_axis(flow, entry)
    if flag(flow, entry, "invert", False):
        raise flow.wrong(entry, "invert is not read")
    size = flow.shape[-1]
    mean, var = entry.config.get("mean"), entry.config.get("variance")
    if mean is None or var is None:
        found = flow.variables.read(entry, {"mean": (size,), "variance": (size,), "count": ()})
        mean, var = found["mean"], found["variance"]
    mean, var = vector(flow, entry, mean, size), vector(flow, entry, var, size)
    if (var < 0).any():
        raise flow.wrong(entry, "a negative variance")
    scale = np.maximum(np.sqrt(var), 1e-7)  # as Keras guards it
    if len(flow.shape) == 1 and not flow.layers and flow.pending is None and flow.normaliser is None and not flow.spans:
        flow.normaliser = Normaliser(floats(mean), floats(scale))
    else:
        flow.affine(1 / scale, -mean / scale)


def _batch_norm(flow: Flow, entry: Entry) -> None:
    last_axis(flow, entry)
    if flag(flow, entry, "renorm", False):
        raise flow.wrong(entry, "renorm is not read")
    size = (flow.shape[-1],)
    names = [n for n, key in (("gamma", "scale"), ("beta", "center")) if flag(flow, entry, key, True)]
    found = flow.variables.read(entry, dict.fromkeys((*names, "moving_mean", "moving_variance"), size))
    spread = found["moving_variance"] + number(flow, entry, "epsilon", 1e-3)
    if (spread <= 0).any():
        raise flow.wrong(entry, "a negative variance")
    factor = found.get("gamma", np.ones(size)) / np.sqrt(spread)
    flow.affine(factor, found.get("beta", np.zeros(size)) - found["moving_mean"] * factor)


def _layer_norm(flow: Flow, entry: Entry) -> None:
    last_axis(flow, entry)
    if len(flow.shape) != 1 or flag(flow, entry, "rms_scaling", False):
        raise flow.wrong(entry, "only the plain one over rows of numbers is read")
    flow.flush()
    size = flow.shape
    names = [n for n, key in (("gamma", "scale"), ("beta", "center")) if flag(flow, entry, key, True)]
    found = flow.variables.read(entry, dict.fromkeys(names, size))
    epsilon = number(flow, entry, "epsilon", 1e-3)
    norm = Norm(found.get("gamma", np.ones(size)), found.get("beta", np.zeros(size)), epsilon)
    if problem := norm.problem():
        raise flow.wrong(entry, problem)
    flow.layers.append(norm)


def _gru(flow: Flow, entry: Entry) -> None:
    units = _recurrent(flow, entry)
    if not flag(flow, entry, "reset_after", False):
        raise flow.wrong(entry, "reset_after=False is another unit than the one that is read")
    found = _gates(flow, entry, units, 3, (2, 3 * units))
    weight, bias_x = flow.absorbed(_reordered(found["kernel"]), _reordered(found["bias"][0]))
    flow.layers.append(Gru(weight, _reordered(found["recurrent_kernel"]), bias_x, _reordered(found["bias"][1])))
    flow.shape = (units,)


def _reordered(gates: Array) -> Array:
    """Keras stacks update, reset, new; torch and we reset, update, new."""
    update, reset, new = np.split(gates, 3, axis=-1)
    return np.concatenate([reset, update, new], axis=-1)


def _lstm(flow: Flow, entry: Entry) -> None:
    units = _recurrent(flow, entry)
    found = _gates(flow, entry, units, 4, (4 * units,))
    weight, bias = flow.absorbed(found["kernel"], found["bias"])
    flow.layers.append(Lstm(weight, found["recurrent_kernel"], bias))
    flow.shape = (units,)


def _recurrent(flow: Flow, entry: Entry) -> int:
    """The units of a layer with memory, after the checks that GRU and LSTM share."""
    if not flow.sequence or len(flow.shape) != 1:
        raise flow.wrong(
            entry,
            "it sees a window of fixed length, which is no memory; only sequences of open length, or stateful ones of length 1, are read",
        )
    for key in ("go_backwards", "return_state"):
        if flag(flow, entry, key, False):
            raise flow.wrong(entry, f"{key} is not read")
    if flow.stateful != flag(flow, entry, "stateful", False):
        raise flow.wrong(entry, "sequences of length 1 need stateful=True, those of open length stateful=False")
    if entry.config.get("activation") != "tanh" or entry.config.get("recurrent_activation") != "sigmoid":
        raise flow.wrong(entry, "only tanh with sigmoid gates is read")
    return whole(flow, entry, "units")


def _gates(flow: Flow, entry: Entry, units: int, gates: int, bias: tuple[int, ...]) -> dict[str, Array]:
    wanted = {"kernel": (flow.shape[0], gates * units), "recurrent_kernel": (units, gates * units)}
    if not flag(flow, entry, "use_bias", True):
        return {**flow.variables.read(entry, wanted, "cell"), "bias": np.zeros(bias)}
    return flow.variables.read(entry, {**wanted, "bias": bias}, "cell")


LAYERS: dict[str, Callable[[Flow, Entry], None]] = {
    "Dense": _dense, "Conv2D": _conv2d, "Conv1D": _conv1d, "MaxPooling2D": _pool("max"), "AveragePooling2D": _pool("mean"),
    "GlobalAveragePooling2D": _pool("mean", everything=True), "GlobalMaxPooling2D": _pool("max", everything=True),
    "Flatten": _flatten, "Activation": _activation, "ReLU": _relu, "LeakyReLU": _leaky, "ELU": _elu, "Softmax": _softmax,
    "Rescaling": _rescaling, "Normalization": _normalization, "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm, "GRU": _gru, "LSTM": _lstm,
}  # fmt: skip
