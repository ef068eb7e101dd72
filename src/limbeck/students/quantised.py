"""Students in whole numbers: trained as they will run, by quantisation-aware distillation.

The forward pass is the arithmetic of `contracts.quantised` itself: float32 rows that hold whole numbers, each rounding of
a float64 that is exact. Rounding has the gradient 1 (straight-through, Bengio et al. 2013, arXiv:1308.3432), clipping its
own; a gated memory's step has that of the same step in real numbers. Below are latent float weights:

    int8, int4  w ~ s clip(round(w / s), -n, n), n = 127 or 7, s = max |w| / n of each output
    int2        w ~ s clip(round(w / s), -2, 1), s = mean |w| (Ma et al. 2024, arXiv:2402.17764, eq. 1-3)
    ternary     w ~ s sign(w) [|w| > 0.7 mean |w|], s the mean |w| of those (Li & Liu 2016, arXiv:1605.04711, eq. 3-6)

Learned steps were tried: LSQ's (arXiv:1902.08153) lost on CartPole at 4 bits (offline loss .088 against .009); a learned
factor on these closed forms gained a little at 4 bits on two tasks, helped int2 on CartPole only and hurt ternary.
At 4 bits and below some weights go on jumping between two neighbours (Nagel et al. 2022, arXiv:2203.11086); steps of
`compress` therefore keep the best weights and fit biases and ranges to them (`stages.finetuning`).
After ReLU a layer's largest number is learned (PACT: Choi et al. 2018, arXiv:1805.06085); tanh and hardtanh have theirs.
It begins at what the layer reaches, and at 2 where random weights reach less: clipped at their first numbers, cnn:8k3:32 on
MinAtar's Breakout never left one answer for all pictures (KL .67 after 400 steps; .20 from 2 or 4 on, .24 in float).
All of it lies in the member's row of theta, behind its weights. The range of the inputs is that of the collected rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from limbeck.contracts import (
    LEVELS,
    TANH_STEPS,
    Blueprint,
    Floats,
    Layer,
    Normaliser,
    Quantise,
    Quantised,
    QuantisedConv,
    QuantisedGru,
    Readout,
)
from limbeck.contracts.layers import Layout, layer_arrays
from limbeck.contracts.quantised import storage_bits
from limbeck.errors import InputError
from limbeck.students.convolution import Convolution
from limbeck.students.quantised_parts import (
    Whole,
    convolved,
    convolved_at_once,
    gate_steps,
    remembered,
    rescaled,
    rounded,
    whole,
)

MOST_INPUTS = 16_384  # of a layer, so that its sums stay within 22 bits
FARTHEST = 8.0  # standard deviations: inputs beyond are clipped, so that one outlier costs nobody's resolution
FRESH, LEAST = 2.0, 1e-3  # what layers of random and of inherited weights reach at least
SAMPLE = 4096  # rows on which a fresh student's ranges are found
PICTURES = 256  # of them at once, where they are pictures

Named = Mapping[str, torch.Tensor]  # tensors of theta, each [K, ...]


@dataclass(frozen=True)
class Link:
    """One layer of a quantised student: dense, a convolution or a gated memory."""

    name: str  # begins its tensors' names
    activation: str  # "": the last layer, which gives real numbers
    convolution: Convolution | None = None
    layout: Layout = "hwc"  # of the picture that a convolution reads
    memory: str = ""  # of a gated memory: begins the names of its tensors on what it remembers
    width: str = ""  # of its weights: int8, int4, int2 or ternary

    @property
    def weights(self) -> tuple[str, ...]:
        return tuple(f"{name}.weight" for name in (self.name, self.memory) if name)


@dataclass(frozen=True)
class Chain:
    """The layers of a quantised student on one task, inputs first."""

    inputs: str  # begins the names of the inputs' ranges
    links: tuple[Link, ...]
    row: int  # numbers of an input row
    ranges: int  # of them: each has a range of its own, and the row repeats them: 1 of pictures, a frame of a history
    scale: float = 0.0  # of a picture, what its numbers arrive divided by; 0: inputs in standard deviations

    def shapes(self, of: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """What theta's rows hold beside weights and biases of the shapes `of`."""
        for link in self.links:
            widest = max(math.prod(of[name][:-1]) for name in link.weights)
            if widest > MOST_INPUTS:
                raise InputError(
                    f"a layer of {link.width} reads {widest:,} numbers, more than its sums can hold. Allowed: up to {MOST_INPUTS:,}."
                )
        shapes: dict[str, tuple[int, ...]] = {
            f"{self.inputs}.low": (self.ranges,),
            f"{self.inputs}.high": (self.ranges,),
        }
        return shapes | {f"{link.name}.reach": (1,) for link in self.links if _reaches(link)}


# ---------------------------------------------------------------- the forward pass


def forward(
    chain: Chain,
    named: Named,
    rows: torch.Tensor,
    first: torch.Tensor | None = None,
    drop: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """rows [N, in] as all students see them -> what the head gives [K, N, W], and what each layer gives [K, N, F], by name.

    `first` [T, B] says which of the N = T B rows begin an episode, for memories; `drop` is applied to what dense layers say.
    """
    x = _levels(chain, named, rows)
    given: dict[str, torch.Tensor] = {}
    for link, layer in zip(chain.links, layers(chain, named), strict=True):
        if layer.held is not None:
            if first is None:
                raise ValueError("a recurrent student needs `first`")
            x = remembered(layer, x, first)
        else:
            total = _sums(link, layer, x)
            if not link.activation:
                return total * layer.step, given
            x = rescaled(total, layer.ratio).clamp(0 if link.activation == "relu" else -LEVELS, LEVELS)
            if link.activation == "tanh":
                x = rounded(LEVELS * torch.tanh(x / TANH_STEPS))
            x = x.reshape(len(x), len(rows), -1)
        given[link.name] = x * layer.unit
        if drop is not None and link.convolution is None and not link.memory:
            x = drop(x)
    raise ValueError("a quantised student without a last layer")


def _levels(chain: Chain, named: Named, rows: torch.Tensor) -> torch.Tensor:
    """[K, N, in] levels of inputs, [1, N, in] where all members read them alike. Pixels are multiplied by their scale
    again first, so that the numbers are those that the frozen quantiser reads."""
    offset, steps = _quantiser(chain, named)
    if torch.equal(offset, offset[:1].expand_as(offset)) and torch.equal(steps, steps[:1].expand_as(steps)):
        offset, steps = offset[:1], steps[:1]
    times = chain.row // chain.ranges
    raw = rows * chain.scale if chain.scale not in (0.0, 1.0) else rows
    return rounded((raw[None] - offset.repeat(1, times)[:, None]) * steps.repeat(1, times)[:, None]).clamp(
        -LEVELS, LEVELS
    )


def _sums(link: Link, layer: Whole, x: torch.Tensor) -> torch.Tensor:
    """[K, N, out], of a convolution [K, N places, out]."""
    if link.convolution is None:
        return layer.sums(x)
    return convolved(_channels_last(link, link.convolution, x), layer.weight, link.convolution) + layer.bias


def _channels_last(link: Link, layer: Convolution, x: torch.Tensor) -> torch.Tensor:
    if link.layout == "hwc":
        return x
    return x.reshape(*x.shape[:2], layer.channels, *layer.size).permute(0, 1, 3, 4, 2).reshape(x.shape)


def layers(chain: Chain, named: Named) -> list[Whole]:
    """The layers of all members in whole numbers."""
    centre, half = _range(chain, named)
    unit, found = torch.full_like(half[:, :1, None], 1.0 / LEVELS), []
    for n, link in enumerate(chain.links):
        weight, bias = named[f"{link.name}.weight"].flatten(1, -2), named[f"{link.name}.bias"][:, None]
        if n == 0:  # on inputs in -1..1
            times = weight.shape[1] // chain.ranges
            bias = bias + torch.bmm(centre.repeat(1, times)[:, None], weight)
            weight = weight * half.repeat(1, times)[:, :, None]
        before, after = _units(link, named, unit)
        layer = whole(link.width, weight, bias, unit, before, after)
        if link.memory:
            weight, bias = named[f"{link.memory}.weight"], named[f"{link.memory}.bias"][:, None]
            layer = replace(layer, held=whole(link.width, weight, bias, after, before, after))
        found.append(layer)
        unit = after
    return found


def _reaches(link: Link) -> bool:
    return link.activation in ("relu", "identity")


def _units(link: Link, named: Named, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[K, 1, 1] what one step of a layer is worth before ([1, 1, 3H] of gates) and after its activation; the last layer's
    say nothing."""
    if _reaches(link):
        worth = torch.exp(named[f"{link.name}.reach"])[:, :, None] / LEVELS
        return worth, worth
    one = torch.full_like(like, 1.0 / LEVELS)
    if link.memory:
        return gate_steps(like, named[f"{link.memory}.weight"].shape[1]), one
    return (torch.full_like(like, 1.0 / TANH_STEPS) if link.activation == "tanh" else one), one


def _range(chain: Chain, named: Named) -> tuple[torch.Tensor, torch.Tensor]:
    """[K, ranges] middle and half width of the inputs that are told apart; 1 where a number never changed."""
    low, high = named[f"{chain.inputs}.low"].detach(), named[f"{chain.inputs}.high"].detach()
    half = (high - low) / 2
    return (high + low) / 2, torch.where(half > 1e-6, half, 1.0)


def _quantiser(chain: Chain, named: Named) -> tuple[torch.Tensor, torch.Tensor]:
    """[K, ranges] offset and steps per unit of the quantiser, of pictures in their own numbers."""
    centre, half = _range(chain, named)
    scale = chain.scale or 1.0
    return centre * scale, LEVELS / (half * scale)


# ---------------------------------------------------------------- where ranges begin


def begin(chain: Chain, named: Named, reach: float) -> None:
    """Fill in the numbers beside weights and biases, in place, before any row is seen; `reach`: what layers reach at least."""
    named[f"{chain.inputs}.low"].fill_(-FARTHEST / 2)
    named[f"{chain.inputs}.high"].fill_(FARTHEST / 2)
    for link in chain.links:
        if _reaches(link):
            named[f"{link.name}.reach"].fill_(math.log(reach))


def see_inputs(chain: Chain, named: Named, rows: torch.Tensor) -> None:
    """The inputs' range is that of rows [N, in], as far as they are not outliers; pictures have none. In place."""
    rows = rows.reshape(-1, chain.ranges)
    low, high = rows.amin(0), rows.amax(0)
    named[f"{chain.inputs}.low"][:] = low if chain.scale else low.clamp_min(-FARTHEST)
    named[f"{chain.inputs}.high"][:] = high if chain.scale else high.clamp_max(FARTHEST)


def see_layers(chain: Chain, named: Named, rows: torch.Tensor) -> None:
    """Before the first gradient step: what the real layers reach on rows [N, in], if that is more than `begin` said. In place."""
    most: dict[str, torch.Tensor] = {}
    for some in torch.split(rows, PICTURES if chain.links[0].convolution else len(rows)):
        for name, reached in _reached(chain, named, some).items():
            most[name] = torch.maximum(most.get(name, reached), reached)
    for name, reached in most.items():
        begun = named[f"{name}.reach"]
        begun[:] = torch.maximum(begun, reached.clamp_min(LEAST).log()[:, None])


def _reached(chain: Chain, named: Named, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """[K] the largest |number| that each real layer gives whose range is learned."""
    x, found = rows[None], {}
    for link in chain.links:
        if link.memory:
            break  # behind it is the last layer alone
        weight, bias = named[f"{link.name}.weight"].flatten(1, -2), named[f"{link.name}.bias"][:, None]
        if link.convolution is None:
            x = torch.baddbmm(bias, x.expand(len(weight), -1, -1), weight)
        else:
            maps = convolved_at_once(_channels_last(link, link.convolution, x), weight, link.convolution) + bias
            x = maps.reshape(len(maps), len(rows), -1)
        if link.activation == "relu":
            x = torch.relu(x)
        elif link.activation == "tanh":
            x = torch.tanh(x)
        elif link.activation == "hardtanh":
            x = x.clamp(-1, 1)
        if _reaches(link):
            found[link.name] = x.abs().amax((1, 2))
    return found


# ---------------------------------------------------------------- freezing


def freeze(chain: Chain, named: Named, normaliser: Normaliser | None) -> list[Layer]:
    """The layers of one member [K = 1]: whole numbers, exactly those of the forward pass. A normaliser that is given goes into
    the inputs' offsets and scales, whose own rounding may then move an input that lies next to a half by one level."""
    with torch.no_grad():
        offset, steps = (part[0].numpy().copy() for part in _quantiser(chain, named))
        found = layers(chain, named)
        if normaliser is not None:
            offset, steps = _normalised(normaliser, *(part[0].double().numpy() for part in _range(chain, named)))
    frozen: list[Layer] = [Quantise(offset, steps, chain.row // chain.ranges)]
    return frozen + [_frozen(link, layer) for link, layer in zip(chain.links, found, strict=True)]


def _normalised(normaliser: Normaliser, centre: Floats, half: Floats) -> tuple[Floats, Floats]:
    """Offset and steps of a quantiser for numbers that are not normalised, from float64."""
    times = len(centre) // len(normaliser.mean) if len(normaliser.mean) <= len(centre) else 1
    mean, spread = (np.tile(a.astype(np.float64), times)[: len(centre)] for a in (normaliser.mean, normaliser.scale))
    return (mean + spread * centre).astype(np.float32), (LEVELS / (spread * half)).astype(np.float32)


def _frozen(link: Link, layer: Whole) -> Layer:
    weight, bias = _plain(layer.weight[0]), _plain(layer.bias[0, 0])
    if not link.activation:
        return Readout(weight, bias, layer.step[0, 0].numpy().copy(), link.width)
    again = _again(layer)
    if layer.held is not None:
        (multiplier, shift), held = again, layer.held
        memory = _again(held)
        return QuantisedGru(
            weight,
            _plain(held.weight[0]),
            bias,
            _plain(held.bias[0, 0]),
            multiplier,
            memory[0],
            shift,
            memory[1],
            link.width,
        )
    if link.convolution is None:
        return Quantised(weight, bias, *again, link.activation, link.width)
    shape, size, stride = link.convolution.shape, link.convolution.size, link.convolution.stride
    return QuantisedConv(weight.reshape(shape), bias, *again, size, stride, link.activation, link.layout, link.width)


def _again(layer: Whole) -> tuple[Floats, Floats]:
    """Multiplier and shift, with which sums become levels again."""
    return _plain(layer.ratio[0, 0] * 2.0 ** layer.shift[0, 0]), _plain(layer.shift[0, 0])


def _plain(numbers: torch.Tensor) -> Floats:
    """Whole numbers without what is left of their straight-through terms."""
    return np.round(numbers.numpy()).astype(np.float32) + np.float32(0)


def weight_bytes(blueprint: Blueprint) -> int:
    """Of a policy's stored numbers: weights of whole numbers packed, biases in 4 bytes, multipliers and shifts in one each."""
    total = 0 if blueprint.normaliser is None else 8 * blueprint.normaliser.mean.size
    return total + sum(map(_layer_bytes, blueprint.layers))


def _layer_bytes(layer: Layer) -> int:
    inner: Sequence[Layer] = getattr(layer, "layers", ())
    if inner:
        return sum(map(_layer_bytes, inner))
    match layer:
        case Quantised() | QuantisedConv():
            return _packed(layer.width, layer.weight) + 6 * layer.bias.size
        case QuantisedGru():
            halves = _packed(layer.width, layer.weight_x) + _packed(layer.width, layer.weight_h)
            return halves + 6 * (layer.bias_x.size + layer.bias_h.size)
        case Readout():
            return _packed(layer.width, layer.weight) + 8 * layer.outputs
    return 4 * sum(int(array.size) for array in layer_arrays(layer))


def _packed(width: str, weight: Floats) -> int:
    return int(-(-storage_bits(width) * weight.size // 8))
