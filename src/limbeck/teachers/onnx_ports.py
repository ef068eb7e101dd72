"""Inputs and outputs of a stranger's ONNX model, told apart by their names and shapes: observations, memory that goes
round, where an episode begins, and what is answered.

Names that are understood, in any case and with any separators:
    memory   an input and an output of one shape whose names differ only in in, out, next, new, prev, 0, n ...: h_in and
             h_out, state_x and state_x_next, h0 and hn; or the only ones left that are called hidden, cell, state ...
    first    first, is_first, episode_start(s), done, dones, reset: 1 where an episode begins
    answers  logits; q, q_values; probs; mean, mu, loc with std or log_std; action(s); value
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from limbeck.errors import InputError, printable

Role = Literal["logits", "q", "probabilities", "mean", "std", "log_std", "action", "value", "other", "unnamed"]
MAX_PORTS = 64
LARGEST = 2**26  # numbers that one row of an input or output may have
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}
_FIRST = {"first", "is_first", "episode_start", "episode_starts", "done", "dones", "reset"}
_ROUND = {"in", "out", "input", "output", "next", "new", "prev", "previous", "last", "initial", "init", "n", "0"}
_MEMORY = {"h", "c", "hx", "cx", "hidden", "cell", "state", "states", "memory", "carry", "rnn", "lstm", "gru"}
_ROLES: tuple[tuple[Role, str], ...] = (
    ("other", r"(neg)?_?log_?p(rob)?s?|.*_log_?prob|.*entropy.*|kl"),
    ("logits", r".*logits?(_\d+)?"),
    ("q", r"q|qs|q_?vals?|q_?values?|action_values?|.*_q_values?"),
    ("probabilities", r".*prob(s|abilities)?|.*softmax"),
    ("log_std", r".*log_?(std|sigma|scale)"),
    ("std", r".*(std|sigma|stddev)|scale"),
    ("mean", r".*mean|mu|.*_mu|loc"),
    ("value", r"v|vf|values?|.*_value|critic|baseline|vpred"),
    ("action", r"acts?|actions?|.*_actions?"),
)


@dataclass(frozen=True)
class Port:
    """One input or output; a dimension is a number, or a name (or None) where it is open."""

    name: str
    dims: tuple[int | str | None, ...]
    dtype: np.dtype[Any]

    @property
    def plain(self) -> str:
        """The name in small letters with single underscores."""
        return re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", self.name).lower()).strip("_")

    def __str__(self) -> str:
        return f"{printable(self.name, 60)} {self.dtype}[{', '.join(printable(d, 20) for d in self.dims)}]"


@dataclass(frozen=True)
class Memory:
    """An input that the next step gets from an output of this one."""

    into: Port
    out: Port
    axis: int  # of the batch

    @property
    def rest(self) -> tuple[int, ...]:
        """Its shape without the batch."""
        return tuple(d for i, d in enumerate(self.into.dims) if i != self.axis and isinstance(d, int))


@dataclass(frozen=True)
class Wiring:
    """What is what."""

    seen: tuple[Port, ...]  # inputs that take the observation
    memory: tuple[Memory, ...]
    first: Port | None
    answers: tuple[Port, ...]  # outputs that are no memory
    block: int | None  # rows that the model takes at once; None: any number


def ports(described: Any, name: str) -> tuple[Port, ...]:
    """The inputs or outputs of a session. Raises InputError for those of other types than numbers."""
    described = list(described)
    if len(described) > MAX_PORTS:
        raise InputError(f"{printable(name)} has {len(described)} inputs or outputs. Allowed: {MAX_PORTS}.")
    found = []
    for one in described:
        if one.type not in DTYPES:
            raise InputError(
                f"{printable(name)}: {printable(one.name, 60)!r} is a {printable(one.type, 60)}. Allowed: {', '.join(DTYPES)}. Export it with numbers."
            )
        try:
            port = Port(one.name, tuple(one.shape), np.dtype(DTYPES[one.type]))
        except UnicodeDecodeError as error:  # ONNX Runtime hands names on as they are
            raise InputError(
                f"{printable(name)} has names that are no UTF-8. Allowed: text. Export it again."
            ) from error
        if math.prod(d for d in port.dims if isinstance(d, int)) > LARGEST:
            raise InputError(f"{printable(name)}: {port} is too large. Allowed: {LARGEST:,} numbers.")
        found.append(port)
    return tuple(found)


def wire(inputs: tuple[Port, ...], outputs: tuple[Port, ...], name: str) -> Wiring:
    """Tell the ports apart. Raises InputError where that leaves no observation, no answer or no batch."""
    pairs = _pairs(inputs, outputs)
    into, out = [a for a, _ in pairs], [b for _, b in pairs]
    first = next((p for p in inputs if p not in into and p.plain in _FIRST), None)
    seen = tuple(p for p in inputs if p not in into and p is not first)
    answers = tuple(p for p in outputs if p not in out)
    if not seen or not answers or any(not p.dims for p in seen):
        raise InputError(
            f"{printable(name)} takes {_told(inputs)} and gives {_told(outputs)}. Allowed: an observation [batch, ...] in, an answer out, memory under names such as h_in and h_out. Export it so."
        )
    batch = seen[0].dims[batch_axis(seen[0])]
    memory = tuple(Memory(a, b, _memory_axis(a, batch, name)) for a, b in pairs)
    sizes = {port.dims[batch_axis(port)] for port in seen} | {m.into.dims[m.axis] for m in memory}
    fixed = {size for size in sizes if isinstance(size, int)}
    if len(fixed) > 1 or 0 in fixed:
        raise InputError(
            f"{printable(name)} takes {_told(inputs)}: batches of {sorted(fixed)} at once. Export it anew."
        )
    return Wiring(seen, memory, first, answers, fixed.pop() if fixed else None)


def batch_axis(port: Port) -> int:
    """0, or 1 for sequences of length one that lie before the batch."""
    return 1 if len(port.dims) > 2 and port.dims[0] == 1 and not isinstance(port.dims[1], int) else 0


def role(port: Port) -> Role:
    """What an output is, by its name."""
    return next((kind for kind, pattern in _ROLES if re.fullmatch(pattern, port.plain)), "unnamed")


def _told(some: tuple[Port, ...]) -> str:
    return ", ".join(map(str, some[:8])) or "nothing"


def _pairs(inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> list[tuple[Port, Port]]:
    pairs: list[tuple[Port, Port]] = []
    free = [p for p in outputs if role(p) in ("other", "unnamed")]
    for by_name in (True, False):
        for port in inputs:
            if any(port is a for a, _ in pairs) or port.plain in _FIRST:
                continue
            fits = [p for p in free if _alike(port, p)]
            if by_name:
                fits = [p for p in fits if _stem(p) and _stem(p) == _stem(port)]
            else:
                fits = [p for p in fits if _remembers(p)] if _remembers(port) else []
            if len(fits) == 1:
                pairs.append((port, fits[0]))
                free.remove(fits[0])
    return pairs


def _alike(into: Port, out: Port) -> bool:
    same = len(into.dims) == len(out.dims) > 1 and into.dtype == out.dtype and into.dtype.kind == "f"
    pairs = zip(into.dims, out.dims, strict=False)
    return same and all(a == b for a, b in pairs if isinstance(a, int) and isinstance(b, int))


def _stem(port: Port) -> str:
    """The name without what says which way it goes."""
    parts = [p for p in port.plain.split("_") if p not in _ROUND]
    joined = "_".join(parts)
    return re.sub(r"^(h|c|hidden|cell)(0|n|in|out|x|y)$", r"\1", joined)


def _remembers(port: Port) -> bool:
    return not _MEMORY.isdisjoint(re.split(r"_|(?<=[a-z])(?=\d)", port.plain))


def _memory_axis(port: Port, batch: int | str | None, name: str) -> int:
    """Where the batch lies in a memory: as the observation names it, else the usual place (layers, batch, units)."""
    open_axes = [i for i, d in enumerate(port.dims) if not isinstance(d, int)]
    wanted = [i for i, d in enumerate(port.dims) if d == batch] if batch is not None else []
    if open_axes:
        axis = next((i for i in wanted if i in open_axes), open_axes[0])
    else:
        size = batch if isinstance(batch, int) else 1
        usual = [1, 0] if len(port.dims) == 3 else [0, 1]
        axis = next((i for i in usual if i < len(port.dims) and port.dims[i] == size), -1)
    if axis < 0 or any(not isinstance(d, int) for i, d in enumerate(port.dims) if i != axis):
        raise InputError(
            f"{printable(name)}: memory {port} leaves open how large it is. Allowed: one open dimension, the batch. Export it so."
        )
    return axis
