"""The spaces that an artefact's contract names, with the attributes that Gymnasium's have: what is read here, nothing more.

The copied modules know them under Gymnasium's names; nothing samples, checks membership or seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np


class Space:
    """What is common: a shape and a number type."""

    def __init__(self, shape: Sequence[int] | None, dtype: Any) -> None:
        self.shape = None if shape is None else tuple(int(n) for n in shape)
        self.dtype = None if dtype is None else np.dtype(dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self.shape or ''}"


class Box(Space):
    """Numbers between bounds."""

    def __init__(self, low: Any, high: Any, shape: Sequence[int], dtype: Any) -> None:
        super().__init__(shape, dtype)
        self.low, self.high = (np.broadcast_to(np.asarray(v, dtype), self.shape or ()) for v in (low, high))


class Discrete(Space):
    """One whole number from start to start + n - 1."""

    def __init__(self, n: int, start: int = 0) -> None:
        if n < 1:
            raise ValueError(f"a choice among {n}")
        super().__init__((), np.int64)
        self.n, self.start = np.int64(n), np.int64(start)


class MultiDiscrete(Space):
    """Several of them."""

    def __init__(self, nvec: Any, start: Any) -> None:
        self.nvec, self.start = np.asarray(nvec, np.int64), np.asarray(start, np.int64)
        if not (self.nvec > 0).all() or self.nvec.shape != self.start.shape:
            raise ValueError(f"choices among {self.nvec.tolist()} from {self.start.tolist()}")
        super().__init__(self.nvec.shape, np.int64)


class MultiBinary(Space):
    """Bits."""

    def __init__(self, n: int | Sequence[int]) -> None:
        super().__init__((n,) if isinstance(n, int) else n, np.int8)


class Dict(Space):
    """Named spaces."""

    def __init__(self, parts: Mapping[str, Space]) -> None:
        super().__init__(None, None)
        self.spaces = dict(parts)

    def __getitem__(self, key: str) -> Space:
        return self.spaces[key]

    def __repr__(self) -> str:
        return f"Dict({', '.join(f'{key!r}: {part}' for key, part in self.spaces.items())})"


spaces = SimpleNamespace(Box=Box, Discrete=Discrete, MultiDiscrete=MultiDiscrete, MultiBinary=MultiBinary, Dict=Dict)
