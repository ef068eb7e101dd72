"""A whole policy as plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from limbeck.contracts.policies import Floats, Head, Spec, View


@dataclass(frozen=True)
class Dense:
    """y = activation(x @ weight + bias)."""

    weight: Floats  # [in, out]
    bias: Floats  # [out]
    activation: str = "identity"


@dataclass(frozen=True)
class Gru:
    """Gated recurrent unit, torch's convention: gates reset, update, new stacked along the last axis.

    r = sigmoid(x Wr + br + h Ur + cr), z = sigmoid(x Wz + bz + h Uz + cz),
    n = tanh(x Wn + bn + r * (h Un + cn)), h' = (1 - z) n + z h (Cho et al. 2014, arXiv:1406.1078, as in torch.nn.GRU).
    """

    weight_x: Floats  # [in, 3H]
    weight_h: Floats  # [H, 3H]
    bias_x: Floats  # [3H]
    bias_h: Floats  # [3H]

    @property
    def size(self) -> int:
        return int(self.weight_h.shape[0])


Layer = Dense | Gru
ACTIVATIONS = ("identity", "relu", "tanh", "sigmoid", "elu", "leaky_relu", "gelu", "silu", "hardtanh")


@dataclass(frozen=True)
class Normaliser:
    """x -> clip((x - mean) / scale, -clip, clip), on the flat observation before history."""

    mean: Floats  # [O]
    scale: Floats  # [O]
    clip: float = math.inf


@dataclass(frozen=True)
class Blueprint:
    """A whole deterministic policy as plain arrays: what is saved, exported, run and proved.

    observation -> view (keys, indices) -> normaliser -> history -> layers -> head.
    Students freeze into one, SB3 MLP teachers load as one, exporters write it, runtimes run it.
    """

    spec: Spec
    head: Head
    layers: tuple[Layer, ...]
    view: View = View()
    normaliser: Normaliser | None = None
    value_layers: tuple[Layer, ...] = ()  # the teacher's critic on the same input; never exported
    name: str = "policy"

    @property
    def parameters(self) -> int:
        """Stored numbers of the deployed policy, normaliser included, critic not."""
        arrays = [a for layer in self.layers for a in layer_arrays(layer)]
        if self.normaliser is not None:
            arrays += [self.normaliser.mean, self.normaliser.scale]
        return sum(int(a.size) for a in arrays)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one step."""
        return sum(int(a.size) for layer in self.layers for a in layer_arrays(layer) if a.ndim == 2)


def layer_arrays(layer: Layer) -> tuple[Floats, ...]:
    """The arrays of a layer in the order they are stored."""
    if isinstance(layer, Dense):
        return (layer.weight, layer.bias)
    return (layer.weight_x, layer.weight_h, layer.bias_x, layer.bias_h)
