"""The small language that names students: `linear`, `mlp:32x32`, `mlp:8:relu`, `gru:16`, and `@4` for four seeds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from limbeck.contracts import ACTIVATIONS
from limbeck.errors import InputError, nearest, printable

KINDS = ("linear", "mlp", "gru")
MAX_WIDTH, MAX_LAYERS, MAX_SEEDS = 8192, 16, 256
EXAMPLES = "linear, mlp:32x32, mlp:8:tanh, gru:16, each with @SEEDS"


@dataclass(frozen=True)
class Architecture:
    """The shape of a student's network, without its input and output sizes."""

    kind: str  # one of KINDS
    widths: tuple[int, ...] = ()
    activation: str = "relu"

    @property
    def spec(self) -> str:
        """The canonical text: what a recipe says and a report shows."""
        if self.kind == "linear":
            return "linear"
        text = f"{self.kind}:{'x'.join(map(str, self.widths))}"
        return text if self.kind == "gru" or self.activation == "relu" else f"{text}:{self.activation}"

    @property
    def recurrent(self) -> bool:
        return self.kind == "gru"


@dataclass(frozen=True)
class MemberSpec:
    """One student of the family."""

    name: str  # "mlp-16x16-s0": safe as a folder name
    architecture: Architecture
    seed: int


def parse(texts: Sequence[str]) -> tuple[MemberSpec, ...]:
    """All members, in the order given. Raises InputError with the grammar for anything else.

    >>> [m.name for m in parse(["mlp:16x16@2", "linear"])]
    ['mlp-16x16-s0', 'mlp-16x16-s1', 'linear-s0']
    """
    members: list[MemberSpec] = []
    for text in texts:
        architecture, seeds = _parse_one(str(text))
        stem = architecture.spec.replace(":", "-")
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
    if kind == "linear":
        if fields:
            raise _bad(text, "linear takes no sizes")
        return Architecture("linear"), seeds
    if not fields or len(fields) > (2 if kind == "mlp" else 1):
        raise _bad(text, f"{kind} needs its sizes" if not fields else "too many parts")
    widths = tuple(_number(text, width, 1, MAX_WIDTH) for width in fields[0].split("x"))
    if len(widths) > (MAX_LAYERS if kind == "mlp" else 1):
        raise _bad(text, f"{len(widths)} layers, at most {MAX_LAYERS if kind == 'mlp' else 1}")
    activation = fields[1] if len(fields) == 2 else "relu"
    if activation not in ACTIVATIONS or activation == "identity":
        raise _bad(text, f"unknown activation{nearest(activation, ACTIVATIONS)}")
    return Architecture(kind, widths, activation), seeds


def _number(text: str, digits: str, low: int, high: int) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", digits) or not low <= int(digits) <= high:
        raise _bad(text, f"{printable(digits)!r} is no number from {low} to {high}")
    return int(digits)


def _bad(text: str, why: str) -> InputError:
    return InputError(f"student {printable(text)!r}: {why}. Allowed: {EXAMPLES}.")
