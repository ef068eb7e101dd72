"""A whole policy as plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from limbeck.contracts.layers import Layer, layer_arrays
from limbeck.contracts.policies import Floats, Head, Spec, View


@dataclass(frozen=True)
class Normaliser:
    """x -> clip((x - mean) / scale, -clip, clip), on the flat observation before history."""

    mean: Floats  # [O]
    scale: Floats  # [O]
    clip: float = math.inf


@dataclass(frozen=True)
class Range:
    """What the policy saw while it was trained: least and largest value of every number of the flat observation.

    The exported C counts observations outside of it; the policy's answer does not depend on it.
    """

    low: Floats  # [O] before the normaliser
    high: Floats  # [O]


@dataclass(frozen=True)
class Blueprint:
    """A whole deterministic policy as plain arrays: what is saved, exported, run and proved.

    observation -> view (keys, indices) -> normaliser -> history -> layers -> head (under the view's action mask).
    Students freeze into one, teachers whose forward pass is known load as one, exporters write it, runtimes run it.
    """

    spec: Spec
    head: Head
    layers: tuple[Layer, ...]
    view: View = View()
    normaliser: Normaliser | None = None
    value_layers: tuple[Layer, ...] = ()  # the teacher's critic on the same input; never exported
    name: str = "policy"
    seen: Range | None = None

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
        return sum(layer.multiply_adds for layer in self.layers)
