"""The layers with memory: each takes [B, inputs], gives [B, H] and carries vectors of H numbers to the next step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from limbeck.contracts.policies import Floats


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
    kind: ClassVar[str] = "gru"
    memory: ClassVar[int] = 1  # vectors of H numbers carried from step to step

    @property
    def size(self) -> int:
        """H."""
        return int(self.weight_h.shape[0])

    @property
    def inputs(self) -> int:
        return int(self.weight_x.shape[0])

    @property
    def outputs(self) -> int:
        return self.size

    @property
    def multiply_adds(self) -> int:
        return int(self.weight_x.size + self.weight_h.size)

    def wanted(self) -> Mapping[str, tuple[int, ...]]:
        gates = 3 * self.size
        return {
            "weight_x": (self.inputs, gates),
            "weight_h": (self.size, gates),
            "bias_x": (gates,),
            "bias_h": (gates,),
        }

    def problem(self) -> str:
        return ""


@dataclass(frozen=True)
class Lstm:
    """Long short-term memory, torch's convention: gates input, forget, cell, output stacked along the last axis.

    i, f, o = sigmoid(x W + h U + b), g = tanh(x Wg + h Ug + bg), c' = f c + i g, h' = o tanh(c')
    (Hochreiter & Schmidhuber 1997, as in torch.nn.LSTM, whose two biases are one here).
    """

    weight_x: Floats  # [in, 4H]
    weight_h: Floats  # [H, 4H]
    bias: Floats  # [4H]
    kind: ClassVar[str] = "lstm"
    memory: ClassVar[int] = 2  # h, then c

    @property
    def size(self) -> int:
        """H."""
        return int(self.weight_h.shape[0])

    @property
    def inputs(self) -> int:
        return int(self.weight_x.shape[0])

    @property
    def outputs(self) -> int:
        return self.size

    @property
    def multiply_adds(self) -> int:
        return int(self.weight_x.size + self.weight_h.size)

    def wanted(self) -> Mapping[str, tuple[int, ...]]:
        gates = 4 * self.size
        return {"weight_x": (self.inputs, gates), "weight_h": (self.size, gates), "bias": (gates,)}

    def problem(self) -> str:
        return ""
