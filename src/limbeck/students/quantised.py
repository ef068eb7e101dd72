"""Students in whole numbers: trained as they will run, by quantisation-aware distillation.

The forward pass is the arithmetic of `contracts.quantised` itself: float32 rows that hold whole numbers, each rounding of
a float64 that is exact. Rounding has the gradient 1 (straight-through, Bengio et al. 2013, arXiv:1308.3432), clipping its
own. Below are latent float weights:

    int8, int4  w ~ s clip(round(w / s), -n, n), n = 127 or 7, s = max |w| / n of each output
    int2        w ~ s clip(round(w / s), -2, 1), s = mean |w| (Ma et al. 2024, arXiv:2402.17764, eq. 1-3)
    ternary     w ~ s sign(w) [|w| > 0.7 mean |w|], s the mean |w| of those (Li & Liu 2016, arXiv:1605.04711, eq. 3-6)

Learned steps were tried: LSQ's (arXiv:1902.08153) lost on CartPole at 4 bits (offline loss .088 against .009); a learned
factor on these closed forms gained a little at 4 bits on two tasks, helped int2 on CartPole only and hurt ternary.
After ReLU a layer's largest number is learned (PACT: Choi et al. 2018, arXiv:1805.06085); tanh and hardtanh have theirs.
All of it lies in the member's row of theta, behind its weights. The range of the inputs is that of the collected rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from limbeck.contracts import (
    BITS,
    LEVELS,
    TANH_STEPS,
    Blueprint,
    Floats,
    Layer,
    Normaliser,
    Quantise,
    Quantised,
    Readout,
)
from limbeck.contracts.layers import layer_arrays
from limbeck.contracts.quantised import LARGEST_SUM, least, storage_bits
from limbeck.errors import InputError

ACTIVATIONS = ("relu", "tanh", "hardtanh")  # of hidden layers
MOST_INPUTS = 16_384  # of a layer, so that its sums stay within 22 bits
OF_WEIGHTS, OF_BIASES = 0.5 * LARGEST_SUM / LEVELS, float(LARGEST_SUM // 10)  # of a sum, the rest is for rounding
FARTHEST = 8.0  # standard deviations: inputs beyond are clipped, so that one outlier costs nobody's resolution
SAMPLE = 4096  # rows on which a fresh student's ranges are found
THRESHOLD = 0.7  # of a ternary weight, times mean |w|

Named = Mapping[str, torch.Tensor]  # tensors of theta, each [K, ...]


@dataclass(frozen=True)
class Link:
    """One layer of a quantised student."""

    name: str  # begins its tensors' names
    activation: str  # "": the last layer, which gives real numbers


@dataclass(frozen=True)
class Chain:
    """The layers of a quantised student on one task, inputs first."""

    inputs: str  # begins the names of the inputs' ranges
    links: tuple[Link, ...]
    width: str

    def shapes(self, of: Mapping[str, tuple[int, ...]], row: int) -> dict[str, tuple[int, ...]]:
        """What theta's rows hold beside weights and biases of the shapes `of`, for inputs of `row` numbers."""
        widest = max(of[f"{link.name}.weight"][0] for link in self.links)
        if widest > MOST_INPUTS:
            raise InputError(
                f"a layer of {self.width} reads {widest:,} numbers, more than its sums can hold. Allowed: up to {MOST_INPUTS:,}."
            )
        shapes: dict[str, tuple[int, ...]] = {f"{self.inputs}.low": (row,), f"{self.inputs}.high": (row,)}
        for link in self.links:
            if _reaches(link):
                shapes[f"{link.name}.reach"] = (1,)
        return shapes


@dataclass(frozen=True)
class Whole:
    """A layer of K members in whole numbers, differentiable."""

    weight: torch.Tensor  # [K, in, out]
    bias: torch.Tensor  # [K, 1, out]
    step: torch.Tensor  # [K, 1, out] what one step of its sum is worth
    ratio: torch.Tensor  # [K, 1, out] multiplier / 2**shift; the last layer has none
    shift: torch.Tensor  # [K, 1, out]
    unit: torch.Tensor  # [K, 1, 1] what one step behind its activation is worth


# ---------------------------------------------------------------- the forward pass


class _Through(torch.autograd.Function):
    """Takes the place of x with the gradient 1."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return value

    @staticmethod
    def backward(ctx: Any, *gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient[0], None


def through(x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """`value`, and gradients that go straight through to x."""
    found: torch.Tensor = _Through.apply(x, value)  # type: ignore[no-untyped-call]  # torch states no types here
    return found


def rounded(x: torch.Tensor) -> torch.Tensor:
    """The nearest whole numbers, halves up, passing gradients straight through.

    >>> rounded(torch.tensor([-0.5, 0.4, 0.5])).tolist()
    [0.0, 0.0, 1.0]
    """
    return through(x, torch.floor(x.detach().double() + 0.5).to(x.dtype))


def rescaled(total: torch.Tensor, ratio: torch.Tensor) -> torch.Tensor:
    """The whole numbers next to sums times multiplier / 2**shift, halves up: products of 30 bits, which float32 would round.

    >>> rescaled(torch.tensor([133043.0]), torch.tensor([133 / 2.0**18])).tolist(), 133043 * 133 / 2**18 < 67.5
    ([67.0], True)
    """
    exact = total.detach().double() * ratio.detach().double()
    return through(total * ratio, torch.floor(exact + 0.5).to(total.dtype))


def forward(
    chain: Chain, named: Named, rows: torch.Tensor, drop: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """rows [N, in] as all students see them -> what the head gives [K, N, W], and what each layer gives [K, N, F], by name."""
    centre, half = _range(chain, named)
    x = rounded((rows[None] - centre[:, None]) * (LEVELS / half[:, None])).clamp(-LEVELS, LEVELS)
    given: dict[str, torch.Tensor] = {}
    for link, layer in zip(chain.links, layers(chain, named), strict=True):
        total = torch.baddbmm(layer.bias, x, layer.weight)
        if not link.activation:
            return total * layer.step, given
        x = rescaled(total, layer.ratio).clamp(0 if link.activation == "relu" else -LEVELS, LEVELS)
        if link.activation == "tanh":
            x = rounded(LEVELS * torch.tanh(x / TANH_STEPS))
        given[link.name] = x * layer.unit
        if drop is not None:
            x = drop(x)
    raise ValueError("a quantised student without a last layer")


def layers(chain: Chain, named: Named) -> list[Whole]:
    """The layers of all members in whole numbers."""
    centre, half = _range(chain, named)
    unit, found = torch.full_like(half[:, :1, None], 1.0 / LEVELS), []
    for n, link in enumerate(chain.links):
        weight, bias = named[f"{link.name}.weight"], named[f"{link.name}.bias"][:, None]
        if n == 0:  # on inputs in -1..1
            bias = bias + torch.bmm(centre[:, None], weight)
            weight = weight * half[:, :, None]
        before, after = _units(link, named, unit)
        found.append(_whole(chain.width, weight, bias, unit, before, after))
        unit = after
    return found


def _whole(
    width: str, weight: torch.Tensor, bias: torch.Tensor, unit: torch.Tensor, before: torch.Tensor, after: torch.Tensor
) -> Whole:
    """Real weights [K, in, out] on steps worth `unit`, for a layer whose steps are worth `before` and `after` its activation."""
    real = weight.detach()
    size, mean = real.abs(), real.abs().mean(1, keepdim=True)
    kept = size > THRESHOLD * mean  # of ternary weights
    if width == "ternary":
        own = (size * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp_min(1)
    else:
        own = mean if width == "int2" else size.amax(1, keepdim=True) / BITS[width]
    # no step so small that a sum, its bias or its multiplier has no room
    room = torch.maximum(size.sum(1, keepdim=True) / OF_WEIGHTS, bias.detach().abs() / (unit.detach() * OF_BIASES))
    own = torch.maximum(own, torch.maximum(room, 2.0**-20 * before.detach() / unit.detach()))
    near = torch.floor(real / own + 0.5).clamp(least(width), BITS[width])
    whole = through(weight / own, torch.sign(real) * kept if width == "ternary" else near)
    worth = unit * own
    ratio, shift = _ratio(worth / before)
    return Whole(whole, rounded(bias / worth).clamp(-OF_BIASES, OF_BIASES), worth, ratio, shift, after)


def _ratio(wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """multiplier / 2**shift next to `wanted`, with a multiplier of 8 bits, and the shift."""
    exact = wanted.detach()
    shift = torch.floor(torch.log2(255.0 / exact)).clamp(1, 31)
    multiplier = torch.floor(exact * 2.0**shift + 0.5).clamp(1, 255)
    return through(wanted, multiplier / 2.0**shift), shift


def _reaches(link: Link) -> bool:
    return link.activation in ("relu", "identity")


def _units(link: Link, named: Named, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[K, 1, 1] what one step of a layer is worth before and after its activation; the last layer's say nothing."""
    if _reaches(link):
        worth = torch.exp(named[f"{link.name}.reach"])[:, :, None] / LEVELS
        return worth, worth
    one = torch.full_like(like, 1.0 / LEVELS)
    return (torch.full_like(like, 1.0 / TANH_STEPS) if link.activation == "tanh" else one), one


def _range(chain: Chain, named: Named) -> tuple[torch.Tensor, torch.Tensor]:
    """[K, in] middle and half width of the inputs that are told apart; 1 where a number never changed."""
    low, high = named[f"{chain.inputs}.low"].detach(), named[f"{chain.inputs}.high"].detach()
    half = (high - low) / 2
    return (high + low) / 2, torch.where(half > 1e-6, half, 1.0)


# ---------------------------------------------------------------- where ranges begin


def begin(chain: Chain, named: Named) -> None:
    """Fill in the numbers beside weights and biases, in place, before any row is seen."""
    named[f"{chain.inputs}.low"].fill_(-FARTHEST / 2)
    named[f"{chain.inputs}.high"].fill_(FARTHEST / 2)
    for link in chain.links:
        if _reaches(link):
            named[f"{link.name}.reach"].fill_(float(np.log(FARTHEST / 2)))


def see_inputs(chain: Chain, named: Named, rows: torch.Tensor) -> None:
    """The inputs' range is that of rows [N, in], as far as they are not outliers. In place."""
    named[f"{chain.inputs}.low"][:] = rows.amin(0).clamp_min(-FARTHEST)
    named[f"{chain.inputs}.high"][:] = rows.amax(0).clamp_max(FARTHEST)


def see_layers(chain: Chain, named: Named, rows: torch.Tensor) -> None:
    """Before the first gradient step: what the real layers reach on rows [N, in]. In place."""
    x = rows[None].expand(len(named[f"{chain.inputs}.low"]), -1, -1)
    for link in chain.links:
        x = torch.baddbmm(named[f"{link.name}.bias"][:, None], x, named[f"{link.name}.weight"])
        if link.activation == "relu":
            x = torch.relu(x)
        elif link.activation == "tanh":
            x = torch.tanh(x)
        elif link.activation == "hardtanh":
            x = x.clamp(-1, 1)
        if _reaches(link):
            named[f"{link.name}.reach"][:] = x.abs().amax((1, 2)).clamp_min(1e-3).log()[:, None]


# ---------------------------------------------------------------- freezing


def freeze(chain: Chain, named: Named, normaliser: Normaliser | None) -> list[Layer]:
    """The layers of one member [K = 1]: whole numbers, exactly those of the forward pass. A normaliser that is given goes into
    the inputs' offsets and scales, whose own rounding may then move an input that lies next to a half by one level."""
    with torch.no_grad():
        centre, half = (part[0].double().numpy() for part in _range(chain, named))
        found = layers(chain, named)
    if normaliser is not None:
        times = len(centre) // len(normaliser.mean) if len(normaliser.mean) <= len(centre) else 1
        mean, spread = (
            np.tile(a.astype(np.float64), times)[: len(centre)] for a in (normaliser.mean, normaliser.scale)
        )
        centre, half = mean + spread * centre, spread * half
    frozen: list[Layer] = [Quantise(centre.astype(np.float32), (LEVELS / half).astype(np.float32))]
    for link, layer in zip(chain.links, found, strict=True):
        weight, bias = _plain(layer.weight[0]), _plain(layer.bias[0, 0])
        if link.activation:
            multiplier = _plain(layer.ratio[0, 0] * 2.0 ** layer.shift[0, 0])
            frozen.append(Quantised(weight, bias, multiplier, _plain(layer.shift[0, 0]), link.activation, chain.width))
        else:
            frozen.append(Readout(weight, bias, layer.step[0, 0].numpy().copy(), chain.width))
    return frozen


def _plain(whole: torch.Tensor) -> Floats:
    """Whole numbers without what is left of their straight-through terms."""
    return np.round(whole.numpy()).astype(np.float32) + np.float32(0)


def weight_bytes(blueprint: Blueprint) -> int:
    """Of a policy's stored numbers: weights of whole numbers packed, biases in 4 bytes, multipliers and shifts in one each."""
    total = 0 if blueprint.normaliser is None else 8 * blueprint.normaliser.mean.size
    return total + sum(map(_layer_bytes, blueprint.layers))


def _layer_bytes(layer: Layer) -> int:
    inner: Sequence[Layer] = getattr(layer, "layers", ())
    if inner:
        return sum(map(_layer_bytes, inner))
    if isinstance(layer, (Quantised, Readout)):
        packed = -(-storage_bits(layer.width) * layer.weight.size // 8)
        return packed + (6 if isinstance(layer, Quantised) else 8) * layer.outputs
    return 4 * sum(int(array.size) for array in layer_arrays(layer))
