"""What goes into policy.h while it is written: constants, vectors, statements, and the routines they call.

Requirements that shaped it: a vector between two layers is as long as it must be and its place is used again; what
would not fit a small stack lies in the state that the caller provides, because the code allocates nothing and owns
nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from limbeck.contracts import Array

STACK_BYTES = 16 * 1024  # of the vectors that one step keeps on the stack
_BYTES = {"float": 4, "uint8_t": 1, "uint16_t": 2, "uint32_t": 4, "int16_t": 2, "int32_t": 4}


@dataclass(frozen=True)
class Row:
    """Where a vector lies: a C expression for its first number, and how many there are."""

    at: str
    size: int
    vector: str = ""  # the vector to hand back once it was read; empty: not ours to write

    def __getitem__(self, index: str) -> str:
        return f"{self.at}[{index}]" if re.fullmatch(r"[\w@>-]+", self.at) else f"({self.at})[{index}]"

    def part(self, begin: int | str, size: int) -> Row:
        """`size` numbers from `begin` on."""
        return Row(f"{self.at} + {begin}" if begin else self.at, size)


@dataclass
class Body:
    """Constants, vectors and statements of one step, in the order they are needed."""

    constants: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    functions: list[str] = field(default_factory=list)  # texts of functions that read the constants
    constant_bytes: int = 0
    vectors: dict[str, int] = field(default_factory=dict)  # name -> numbers
    depth: int = 0  # of loops over agents around the statements that come next
    _free: list[str] = field(default_factory=list)

    def constant(self, name: str, values: Array, ctype: str = "float") -> str:
        """Store numbers; the name to read them by, which begins with the prefix: the header lands in users' files."""
        name, flat = f"@p_{name}", values.reshape(-1)
        words = literals(flat) if ctype == "float" else [str(int(v)) for v in flat]
        rows = ",\n    ".join(", ".join(words[i : i + 8]) for i in range(0, len(words), 8))
        self.constants.append(f"static const @P_ALIGNED {ctype} {name}[{flat.size}] = {{\n    {rows}}};\n")
        self.constant_bytes += flat.size * _BYTES[ctype]
        return name

    def add(self, *lines: str) -> None:
        self.lines += [" " * 4 * self.depth + line for line in lines]

    def each(self, count: int, *statements: str) -> None:
        """Statements for i = 0 .. count - 1."""
        head = f"for (i = 0; i < {count}; i++)"
        if len(statements) == 1:
            self.add(head, f"    {statements[0]}")
        else:
            self.add(f"{head} {{", *(f"    {s}" for s in statements), "}")

    def take(self, size: int) -> Row:
        """A vector that nothing else uses: the free one that must grow least."""
        if self._free:
            name = min(self._free, key=lambda n: (max(size - self.vectors[n], 0), self.vectors[n]))
            self._free.remove(name)
        else:
            count = len(self.vectors)
            name = "xyz"[count] if count < 3 else f"x{count}"
        self.vectors[name] = max(self.vectors.get(name, 1), size)
        return Row(name, size, name)

    def hand_back(self, row: Row) -> None:
        """The vector was read for the last time."""
        if row.vector:
            self._free.append(row.vector)

    def placed(self) -> tuple[dict[str, int], dict[str, int]]:
        """(on the stack, in the state's scratch): the longest vectors leave the stack until the rest fit it."""
        stack, scratch = dict(self.vectors), {}
        while 4 * sum(stack.values()) > STACK_BYTES:
            longest = max(stack, key=lambda n: stack[n])
            scratch[longest] = stack.pop(longest)
        return stack, scratch


def literals(values: Array) -> list[str]:
    """float32 numbers as exact C99 constants, fast enough for millions.

    >>> literals(np.array([0.1, -0.0, 1.0, np.inf], np.float32))
    ['0x1.99999ap-4f', '-0x0p+0f', '0x1p+0f', 'INFINITY']
    """
    text = ",".join(map(float.hex, values.astype(np.float32).astype(np.float64).tolist()))
    words = [f"{word}f" for word in re.sub(r"\.?0+p", "p", text).split(",")] if text else []
    for i in np.flatnonzero(np.isinf(values)):
        words[i] = "INFINITY" if values[i] > 0 else "-INFINITY"
    return words


def literal(value: float) -> str:
    """One float32 as an exact C99 constant.

    >>> literal(0.1), literal(-0.0), literal(float("inf"))
    ('0x1.99999ap-4f', '-0x0p+0f', 'INFINITY')
    """
    return literals(np.array([value], np.float32))[0]
