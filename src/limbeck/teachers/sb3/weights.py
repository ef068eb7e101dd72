"""Torch tensors of a state dict as layers: transposed, their parts checked, scales of the input folded in float64."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np

from limbeck.contracts import Array, Conv, Dense, Floats, Gsde, Layer, Lstm
from limbeck.errors import InputError, printable

SUPPORTED = (
    "Allowed: the policies of Stable-Baselines3 and sb3-contrib with their own features extractors (flatten, NatureCNN, "
    "CombinedExtractor). For anything else pass a torch.nn.Module or a callable in Python."
)
Weights = Mapping[str, Array]
NATURE = ((8, 4), (4, 2), (3, 1))  # kernel and stride of the three convolutions of NatureCNN (Mnih et al. 2015)


def check_finite(weights: Weights, name: str) -> None:
    for key, array in weights.items():
        if not np.isfinite(array).all():
            bad = int((~np.isfinite(array)).sum())
            raise InputError(
                f"{printable(name)}: {printable(key)} holds {bad} NaN or infinite numbers of {array.size}. Take an earlier checkpoint."
            )


def tensor(weights: Weights, name: str, dimensions: int) -> Floats:
    """One tensor as float32. Raises KeyError where it is missing, InputError for another kind."""
    array = weights[name]
    if array.ndim != dimensions or array.dtype.kind != "f" or 0 in array.shape:
        raise InputError(
            f"{name} has shape {array.shape} and type {array.dtype}, allowed: {dimensions} axes of floats. {SUPPORTED}"
        )
    return np.ascontiguousarray(array, np.float32)


def dense(weights: Weights, name: str, activation: str = "identity", with_bias: bool = True) -> Dense:
    """A Linear layer; without a bias where it may have none and has none."""
    weight = tensor(weights, f"{name}.weight", 2)
    if not with_bias and f"{name}.bias" not in weights:
        bias = np.zeros(len(weight), np.float32)
    else:
        bias = tensor(weights, f"{name}.bias", 1)
    if bias.shape != weight.shape[:1]:
        raise InputError(
            f"{name} has a weight of {weight.shape} and a bias of {bias.shape}: it is no linear layer. {SUPPORTED}"
        )
    return Dense(np.ascontiguousarray(weight.T), bias, activation)


def stack(weights: Weights, prefix: str, activation: str, with_bias: bool = True) -> list[Dense]:
    """Linear layers 0, 2, 4 ... of a torch Sequential, each followed by the activation."""
    inside = [key[len(prefix) + 1 :].split(".")[0] for key in weights if key.startswith(f"{prefix}.")]
    indices = sorted({int(index) for index in inside if re.fullmatch(r"\d{1,4}", index)})
    if indices != list(range(0, 2 * len(indices), 2)):
        raise InputError(
            f"{prefix} has layers at {indices} where 0, 2, 4 ... are expected: it is no plain MLP. {SUPPORTED}"
        )
    return [dense(weights, f"{prefix}.{i}", activation, with_bias) for i in indices]


Affine = tuple[Array, Array]  # float64 [n] each: x -> x * first + second


def normed_stack(weights: Weights, prefix: str, activation: str, epsilon: float) -> tuple[list[Dense], Affine | None]:
    """Linear layers, each behind a batch (re)normalisation by running statistics, which is taken into its weights; and
    the normalisation behind the last one (BatchRenorm of sb3-contrib, arXiv:1702.03275). Without any: as `stack`."""
    inside = {key[len(prefix) + 1 :] for key in weights if key.startswith(f"{prefix}.")}
    norms = sorted(int(key.split(".")[0]) for key in inside if re.fullmatch(r"\d{1,4}\.ra_mean", key))
    if not norms:
        return stack(weights, prefix, activation), None
    linear = sorted(int(key.split(".")[0]) for key in inside if re.fullmatch(r"\d{1,4}\.weight", key))
    if norms != [i - 1 for i in linear] + [3 * len(linear)] or linear != [3 * i + 1 for i in range(len(linear))]:
        raise InputError(f"{prefix} has layers at {linear} and norms at {norms}, which is not read here. {SUPPORTED}")
    affine = [_renorm(weights, f"{prefix}.{i}", epsilon) for i in norms]
    layers = [dense(weights, f"{prefix}.{i}", activation) for i in linear]
    return [behind(layer, norm) for layer, norm in zip(layers, affine, strict=False)], affine[-1]


def _renorm(weights: Weights, name: str, epsilon: float) -> Affine:
    mean, var, scale, bias = (
        tensor(weights, f"{name}.{key}", 1).astype(np.float64) for key in ("ra_mean", "ra_var", "scale", "bias")
    )
    if not mean.shape == var.shape == scale.shape == bias.shape or not (var + epsilon > 0).all():
        raise InputError(
            f"{name} has statistics of {mean.shape} and {var.shape}, or a negative variance. Save it again."
        )
    factor = scale / np.sqrt(var + epsilon)
    return factor, bias - mean * factor


def behind(layer: Dense, affine: Affine | None) -> Dense:
    """The layer that takes x where `layer` took x * a + b."""
    if affine is None:
        return layer
    if affine[0].shape != (layer.inputs,):
        raise InputError(f"a norm of {affine[0].size} numbers before a layer of {layer.inputs}. Save it again.")
    wide = layer.weight.astype(np.float64)
    bias = layer.bias + affine[1] @ wide
    return replace(layer, weight=(wide * affine[0][:, None]).astype(np.float32), bias=bias.astype(np.float32))


def open_ended(layers: list[Dense]) -> list[Dense]:
    """The layers with nothing after the last one."""
    return [*layers[:-1], replace(layers[-1], activation="identity")] if layers else []


def lstm(weights: Weights, prefix: str) -> list[Lstm]:
    """The layers of a torch LSTM, whose two biases become one."""
    count = sum(1 for key in weights if re.fullmatch(rf"{prefix}\.weight_ih_l\d+", key))
    return [_lstm_layer(weights, prefix, i) for i in range(count)]


def _lstm_layer(weights: Weights, prefix: str, index: int) -> Lstm:
    from_x, from_h = (tensor(weights, f"{prefix}.weight_{k}_l{index}", 2) for k in ("ih", "hh"))
    gates, size = from_h.shape
    biased = f"{prefix}.bias_ih_l{index}" in weights
    biases = [tensor(weights, f"{prefix}.bias_{k}_l{index}", 1) for k in ("ih", "hh")] if biased else []
    if from_x.shape[0] != gates or gates != 4 * size or any(bias.shape != (gates,) for bias in biases):
        raise InputError(
            f"{prefix} has weights of {from_x.shape} and {from_h.shape} and biases of {[b.shape for b in biases]}: it is no LSTM. {SUPPORTED}"
        )
    bias: Floats = sum(biases, np.zeros(gates, np.float32))
    return Lstm(np.ascontiguousarray(from_x.T), np.ascontiguousarray(from_h.T), bias)


def nature(
    weights: Weights, prefix: str, size: tuple[int, int], layout: Literal["hwc", "chw"], gain: float
) -> list[Layer]:
    """NatureCNN over an image of `size` (height, width) whose numbers are to be multiplied by `gain`."""
    layers: list[Layer] = []
    for index, (kernel, stride) in enumerate(NATURE):
        name = f"{prefix}.cnn.{2 * index}"
        weight, bias = tensor(weights, f"{name}.weight", 4), tensor(weights, f"{name}.bias", 1)
        if weight.shape[2:] != (kernel, kernel) or bias.shape != weight.shape[:1] or min(size) < kernel:
            raise InputError(
                f"{name} has a weight of {weight.shape} and sees {size}: it is no layer of NatureCNN, which has kernels of 8, 4 and 3. {SUPPORTED}"
            )
        wide = weight.astype(np.float64).transpose(2, 3, 1, 0) * (1.0 if index else gain)
        conv = Conv(
            np.ascontiguousarray(wide, np.float32), bias, size, (stride, stride), activation="relu",
            layout="hwc" if index else layout,
        )  # fmt: skip
        layers.append(conv)
        size = conv.out_size
    last = dense(weights, f"{prefix}.linear.0", "relu")
    channels = weight.shape[0]
    if last.inputs != channels * size[0] * size[1]:
        raise InputError(
            f"{prefix}.linear.0 takes {last.inputs} numbers where {channels}x{size[0]}x{size[1]} arrive. "
            "The image has another size than the teacher's. Give the environment it was trained in with --env."
        )
    turned = last.weight.reshape(channels, *size, -1).transpose(1, 2, 0, 3).reshape(last.inputs, -1)
    return [*layers, replace(last, weight=np.ascontiguousarray(turned))]


def scaled(layer: Layer, gain: Array) -> Layer:
    """The layer that takes x where `layer` took x * gain; gain [inputs]. Raises InputError for layers without rows."""
    if not (gain != 1).any():
        return layer
    fields = {Dense: ("weight",), Lstm: ("weight_x",), Gsde: ("weight", "spread")}.get(type(layer))
    if fields is None or gain.shape != (layer.inputs,):
        raise InputError(f"a {layer.kind} layer takes {layer.inputs} numbers where {gain.size} arrive. {SUPPORTED}")
    wide = {key: (getattr(layer, key).astype(np.float64) * gain[:, None]).astype(np.float32) for key in fields}
    return replace(layer, **wide)
