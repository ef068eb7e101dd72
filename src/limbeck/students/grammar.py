"""The small language that names students: `linear`, `mlp:32x32`, `mlp:8:relu`, `gru:16`, `cnn:...`, `conv1d:...`, `@4` for four seeds.

cnn:4k8s4-8k4s2:cp2-24     two convolutions (filters k kernel s stride), a 1x1 convolution to 2 channels, dense 24
cnn:16k3:64x32:tanh        one convolution, dense 64 and 32, tanh throughout
cnn:16k3                   straight to the head
cnn:16k3:32-gru16          dense 32, then a GRU of 16
conv1d:16k5s2-16k3:32      convolutions along the history, then dense 32
mlp:64x64:r8               dense layers as products of rank 8, where that makes them smaller; also cnn:16k3:64:r8
mlp:32x32:tanh:int4        whole numbers throughout, with weights of 4 bits; int8, int2 and ternary; also linear:int8, mlp:64x64:r8:int8,
                           gru:16:int8, cnn:8k3:32:int8, cnn:16k3:32-gru16:int8, conv1d:16k5s2:32:tanh:int4
mlp:32x32:mixed4           int8 in the first layer, which has few weights and needs them most, int4 behind it; mixed2: int2
nested:64x64               one set of weights for the widths 64, 32, 16, 8 and 4, each a member: nested-64x64-w16-s0
nested:64x64:w16           that width alone
tree:leaves=16             a decision tree of at most 16 leaves, each split reading one number; tree:depth=6 bounds the questions
oblique:leaves=8           splits may read several numbers; oblique:depth=3
rule:3                     a linear controller of at most 3 numbers, found among all; ternary:3 with weights 1 and -1 alone
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from limbeck.contracts import ACTIVATIONS, BITS
from limbeck.contracts.quantised import QUANTISED_ACTIVATIONS
from limbeck.errors import InputError, nearest, printable

GROWN = ("tree", "oblique", "rule", "ternary")  # found by search in the collected rows, not by gradient steps
MIXED = {"mixed4": "int4", "mixed2": "int2"}  # int8 in the first layer, and this width behind it
KINDS = ("linear", "mlp", "nested", "gru", "cnn", "conv1d", *GROWN)
MAX_WIDTH, MAX_LAYERS, MAX_SEEDS, MAX_KERNEL = 8192, 16, 256, 1024
MAX_LEAVES, MAX_DEPTH, MAX_NUMBERS = 4096, 12, 256
NARROWEST = 4  # of nested widths
A_RANK, A_WIDTH = "a rank such as r8, ", "a width such as w16, "
PRECISIONS = (*BITS, *MIXED)  # of weights in whole numbers
WHOLE_KINDS = ("linear", "mlp", "gru", "cnn", "conv1d")  # that there are in whole numbers
WHOLE_ACTIVATIONS = tuple(one for one in QUANTISED_ACTIVATIONS if one != "identity")  # of hidden layers
MAX_NAME = 200  # characters: file systems allow 255, and files are named after members
EXAMPLES = "linear, mlp:32x32, mlp:8:tanh, gru:16, cnn:4k8s4-8k4s2:cp2-24, cnn:16k3:64, conv1d:16k5s2-16k3:32, mlp:64x64:r8, mlp:32x32:int8, mlp:32x32:mixed4, gru:16:int8, nested:64x64, tree:leaves=16, tree:depth=6, oblique:leaves=8, rule:3, ternary:3, each with @SEEDS"


def layer_widths(precision: str, layers: int) -> tuple[str, ...]:
    """The width of every layer's weights, inputs first; a layer written as a product counts as two.

    >>> layer_widths("mixed4", 3), layer_widths("int4", 2)
    (('int8', 'int4', 'int4'), ('int4', 'int4'))
    """
    if precision in MIXED:
        return ("int8", *[MIXED[precision]] * (layers - 1))
    return (precision,) * layers


@dataclass(frozen=True)
class Filters:
    """One convolution: how many filters, how large, how far apart."""

    count: int
    kernel: int
    stride: int = 1

    @property
    def spec(self) -> str:
        return f"{self.count}k{self.kernel}" + (f"s{self.stride}" if self.stride > 1 else "")


@dataclass(frozen=True)
class Architecture:
    """The shape of a student's network, without its input and output sizes: convolutions, dense layers, a GRU, in this order."""

    kind: str  # one of KINDS
    widths: tuple[int, ...] = ()  # dense layers
    activation: str = "relu"  # of convolutions and dense layers
    filters: tuple[Filters, ...] = ()
    compact: int = 0  # channels of the linear 1x1 convolution after the others; 0: none
    memory: int = 0  # numbers the GRU carries; 0: none
    rank: int = 0  # of dense layers written as products of two; 0: whole
    whole: tuple[int, ...] = ()  # nested: dense layers of the widest network, of which `widths` are a slice
    leaves: int = 0  # at most, of a tree; 0: bounded by its depth
    depth: int = 0  # questions on a tree's longest path, at most; 0: bounded by its leaves
    numbers: int = 0  # of a rule: weights and biases that are not zero, at most
    precision: str = ""  # of weights in whole numbers, one of PRECISIONS; "": float32

    @property
    def spec(self) -> str:
        """The canonical text: what a recipe says and a report shows."""
        if self.kind == "linear":
            return ":".join(["linear", *[self.precision] * bool(self.precision)])
        if self.kind == "gru":
            return ":".join([f"gru:{self.memory}", *[self.precision] * bool(self.precision)])
        if self.kind in ("tree", "oblique"):
            return f"{self.kind}:leaves={self.leaves}" if self.leaves else f"{self.kind}:depth={self.depth}"
        if self.kind in ("rule", "ternary"):
            return f"{self.kind}:{self.numbers}"
        sizes = "x".join(map(str, self.widths))
        if self.kind == "mlp":
            parts = [sizes]
        elif self.kind == "nested":
            parts = ["x".join(map(str, self.whole)), f"w{self.widths[0]}"]
        else:
            readout = [f"cp{self.compact}"] * bool(self.compact) + [sizes] * bool(sizes)
            readout += [f"gru{self.memory}"] * bool(self.memory)
            parts = ["-".join(f.spec for f in self.filters), *["-".join(readout)] * bool(readout)]
        parts += [f"r{self.rank}"] * bool(self.rank)
        return ":".join(
            [
                self.kind,
                *parts,
                *[self.activation] * (self.activation != "relu"),
                *[self.precision] * bool(self.precision),
            ]
        )

    @property
    def recurrent(self) -> bool:
        return self.memory > 0

    @property
    def grown(self) -> bool:
        """Whether it is found by search (trees, rules) instead of gradient steps."""
        return self.kind in GROWN

    @property
    def nest(self) -> tuple[Architecture, ...]:
        """All widths of a nested network, widest first, halved as long as no layer falls below four; () for others."""
        if self.kind != "nested":
            return ()
        halvings = range(min(self.whole).bit_length())
        widths = [tuple(size >> n for size in self.whole) for n in halvings]
        return tuple(replace(self, widths=w) for w in widths if w == self.whole or min(w) >= NARROWEST)


@dataclass(frozen=True)
class MemberSpec:
    """One student of the family."""

    name: str  # "mlp-16x16-s0": safe as a folder name
    architecture: Architecture
    seed: int


def parse(texts: Sequence[str]) -> tuple[MemberSpec, ...]:
    """All members, in the order given. Raises InputError with the grammar for anything else.

    >>> [m.name for m in parse(["mlp:16x16@2", "cnn:4k8s4:cp2-24"])]
    ['mlp-16x16-s0', 'mlp-16x16-s1', 'cnn-4k8s4-cp2-24-s0']
    """
    members: list[MemberSpec] = []
    for text in texts:
        given, seeds = _parse_one(str(text))
        for architecture in given.nest if given.kind == "nested" and not given.widths else (given,):
            stem = architecture.spec.replace(":", "-").replace("=", "")
            if len(stem) > MAX_NAME:
                raise _bad(text, f"its name is {len(stem)} characters, longer than a folder's may be ({MAX_NAME})")
            taken = sum(m.architecture == architecture for m in members)
            members += [MemberSpec(f"{stem}-s{taken + i}", architecture, taken + i) for i in range(seeds)]
    if not members:
        raise InputError(f"no students were asked for. Allowed: {EXAMPLES}.")
    return tuple(members)


def _parse_one(text: str) -> tuple[Architecture, int]:
    body, at, count = text.partition("@")
    kind, *fields = body.split(":")
    if kind not in KINDS:
        raise InputError(f"unknown student {printable(text)!r}{nearest(kind, KINDS)} Allowed: {EXAMPLES}.")
    seeds = _number(text, count, 1, MAX_SEEDS) if at else 1
    if precision := _precision(text, kind, fields):
        fields.remove(precision)
    if kind == "linear":
        if fields:
            raise _bad(text, "linear takes no sizes")
        if precision in MIXED:
            raise _bad(text, f"linear is one layer, of which {precision} would be int8")
        return Architecture("linear", precision=precision), seeds
    if kind in GROWN:
        return _grown(text, kind, fields), seeds
    rank = 0
    if kind in ("mlp", "cnn", "conv1d") and (ranked := [f for f in fields[1:] if re.fullmatch(r"r[0-9]+", f)]):
        rank = _number(text, ranked[0][1:], 1, MAX_WIDTH)
        fields.remove(ranked[0])
    most = {"mlp": 2, "gru": 1}.get(kind, 3)
    if not fields or len(fields) > most:
        told = f"too many parts, of which {kind} takes no {printable(':'.join(fields[most:]))!r}"
        raise _bad(text, told if fields else f"{kind} needs its sizes")
    if kind == "gru":
        return Architecture("gru", memory=_sizes(text, fields[0], 1)[0], precision=precision), seeds
    if kind == "nested":
        return _nested(text, fields), seeds
    if kind == "mlp":
        activation = _activation(text, fields[1], "" if rank else A_RANK) if len(fields) == 2 else "relu"
        found = Architecture("mlp", _sizes(text, fields[0], MAX_LAYERS), activation)
    else:
        found = _convolutional(text, kind, fields)
    if precision and found.activation not in WHOLE_ACTIVATIONS:
        raise _bad(text, f"{precision} has no {found.activation}. Allowed with it: {', '.join(WHOLE_ACTIVATIONS)}")
    return replace(found, rank=rank, precision=precision), seeds


def _precision(text: str, kind: str, fields: Sequence[str]) -> str:
    """The width of weights in whole numbers among the parts of a student, "" where there is none."""
    found = [part for part in fields if part in PRECISIONS]
    if len(found) > 1:
        raise _bad(text, f"it has one width of weights, not both {found[0]} and {found[1]}")
    if found and kind not in WHOLE_KINDS:
        allowed = f"{', '.join(WHOLE_KINDS[:-1])} and {WHOLE_KINDS[-1]}"
        later = f"; compress: [quantise: {found[0]}] makes it so later" if kind == "nested" else ""
        raise _bad(text, f"{found[0]} is a width of weights of {allowed} students, {kind} has none{later}")
    return found[0] if found else ""


def _grown(text: str, kind: str, fields: Sequence[str]) -> Architecture:
    """leaves=N or depth=N of trees; the most numbers of rules."""
    if len(fields) != 1:
        raise _bad(text, f"{kind} needs one size")
    if kind in ("rule", "ternary"):
        return Architecture(kind, numbers=_number(text, fields[0], 1, MAX_NUMBERS))
    what, _, size = fields[0].partition("=")
    if what == "leaves":
        return Architecture(kind, leaves=_number(text, size, 2, MAX_LEAVES))
    if what == "depth":
        return Architecture(kind, depth=_number(text, size, 1, MAX_DEPTH))
    raise _bad(text, f"{printable(fields[0])!r} is neither leaves=N nor depth=N")


def _nested(text: str, fields: Sequence[str]) -> Architecture:
    """SIZES[:wWIDTH][:ACTIVATION]; without a width all of them are meant, and `widths` is empty."""
    whole, rest = _sizes(text, fields[0], MAX_LAYERS), list(fields[1:])
    width = rest.pop(0) if rest and re.fullmatch(r"w[0-9]+", rest[0]) else ""
    if any(re.fullmatch(r"r[0-9]+", part) for part in rest):
        raise _bad(text, "nested takes no rank, its widths are slices of whole layers")
    if len(rest) > 1:
        raise _bad(text, f"{printable(rest[0])!r} is no width such as w16")
    activation = _activation(text, rest[0], "" if width else A_WIDTH) if rest else "relu"
    nested = Architecture("nested", activation=activation, whole=whole)
    if not width:
        return nested
    for one in nested.nest:
        if one.widths[0] == int(width[1:]):
            return one
    allowed = ", ".join(f"w{one.widths[0]}" for one in nested.nest)
    raise _bad(text, f"it has no {printable(width)}, its widths are {allowed}")


def _convolutional(text: str, kind: str, fields: Sequence[str]) -> Architecture:
    """FILTERS[:READOUT][:ACTIVATION]; a readout begins with a digit, cp or gru, an activation with none of them."""
    filters = tuple(_filters(text, part) for part in fields[0].split("-"))
    if len(filters) > MAX_LAYERS:
        raise _bad(text, f"{len(filters)} convolutions, at most {MAX_LAYERS}")
    rest = list(fields[1:])
    readout = rest.pop(0).split("-") if rest and re.match(r"[0-9]|cp|gru", rest[0]) else []
    if len(rest) > 1:
        raise _bad(text, f"{printable(rest[0])!r} is no readout such as 64, 64x32, cp2-24 or 64-gru32")
    compact, memory = 0, 0
    if readout and readout[0].startswith("cp"):
        compact = _number(text, readout.pop(0)[2:], 1, MAX_WIDTH)
    if readout and readout[-1].startswith("gru"):
        memory = _number(text, readout.pop()[3:], 1, MAX_WIDTH)
    if len(readout) > 1:
        raise _bad(text, "a readout is at most one cpN, then dense sizes such as 64x32, then one gruN")
    widths = _sizes(text, readout[0], MAX_LAYERS) if readout else ()
    return Architecture(kind, widths, _activation(text, rest[0], A_RANK) if rest else "relu", filters, compact, memory)


def _filters(text: str, part: str) -> Filters:
    found = re.fullmatch(r"([0-9]+)k([0-9]+)(?:s([0-9]+))?", part)
    if found is None:
        raise _bad(text, f"{printable(part)!r} is no convolution such as 8k4s2 (8 filters, kernel 4, stride 2)")
    count, kernel, stride = found.groups()
    return Filters(
        _number(text, count, 1, MAX_WIDTH),
        _number(text, kernel, 1, MAX_KERNEL),
        _number(text, stride or "1", 1, MAX_KERNEL),
    )


def _sizes(text: str, part: str, most: int) -> tuple[int, ...]:
    widths = tuple(_number(text, width, 1, MAX_WIDTH) for width in part.split("x"))
    if len(widths) > most:
        raise _bad(text, f"{len(widths)} layers, at most {most}")
    return widths


def _activation(text: str, name: str, other: str = "") -> str:
    """The activation; `other` says what else might have stood in its place."""
    known = [one for one in ACTIVATIONS if one != "identity"]
    if name not in known:
        widths = PRECISIONS if text.startswith(WHOLE_KINDS) else ()
        there = f"Allowed there: {other}{', '.join((*known, *widths))}"
        raise _bad(text, f"unknown activation {printable(name)!r}{nearest(name, (*known, *widths))} {there}")
    return name


def _number(text: str, digits: str, low: int, high: int) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", digits) or not low <= int(digits) <= high:
        raise _bad(text, f"{printable(digits)!r} is no number from {low} to {high}")
    return int(digits)


def _bad(text: str, why: str) -> InputError:
    return InputError(f"student {printable(text)!r}: {why}. Allowed: {EXAMPLES}.")
