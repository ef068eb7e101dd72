"""What the inert pickle reader may build: numpy arrays, torch tensors as arrays, ordered dicts; records for all else.

Each builder here does by hand what the named function would do for plain data. None of them imports the name.
A few bytes may name one thing a million times, so whatever copies, formats, hashes or compares values of the file is
bounded: by a budget for what is copied or spread out, and by sizes for names, numbers and keys.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from limbeck.contracts import Array

BUDGET_FLOOR = 64 * 2**20  # bytes of arrays and copies that any file may make, however small it is
BUDGET_TIMES = 8  # and this many times its own size: tied weights, widened bfloat16, tensors expanded a little
BUDGET_CEILING = 2 * 2**30
MAX_DIMS, SIZE_BITS = 32, 48  # of an array: its dimensions, and what each of them is below
MAX_KEYS = 10_000  # keys other than text: numbers with the same hash can be made, and then each is compared with all
KEY_DEPTH, KEY_WIDTH = 2, 16
_ENTRY = 64  # bytes that an entry of a list or dict is counted as


class Malformed(ValueError):
    """The bytes are no well-formed pickle, or not one of the kind that is read here."""


class Budget:
    """What one reading may still make: bytes of arrays and copies (also of views: each is read later on), and keys."""

    def __init__(self, size: int) -> None:
        self._left = min(BUDGET_FLOOR + BUDGET_TIMES * size, BUDGET_CEILING)
        self._keys = MAX_KEYS

    def spend(self, count: int) -> None:
        """Before `count` bytes are made. Raises Malformed beyond what a file of this size is given."""
        self._left -= count
        if self._left < 0:
            raise Malformed("it repeats or spreads its data out to many times its size")

    def key(self, key: Any) -> Any:
        """`key`, if it may stand in a dict or set."""
        if not isinstance(key, (str, bytes)):
            self._keys -= 1
        if self._keys < 0:
            raise Malformed(f"more than {MAX_KEYS:,} keys that are no text")
        return hashable(key)


Builder = Callable[[tuple[Any, ...], Budget], Any]  # a call's arguments -> the value


@dataclass(frozen=True)
class Named:
    """A class or function that the file names. Never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False)  # printing one would print all that it holds, as often as it is held
class Opaque:
    """What unpickling would have made by calling `target`. Never called."""

    target: Any  # Named, or another Opaque
    args: tuple[Any, ...] = ()
    state: Any = None  # what BUILD would have set
    items: list[Any] = field(default_factory=list)  # what list or set opcodes would have added
    entries: list[tuple[Any, Any]] = field(default_factory=list)  # what dict opcodes would have set

    @property
    def attributes(self) -> dict[Any, Any]:
        """The instance's attributes, where its state is the usual dict."""
        state = self.state
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], dict):
            state = state[0]
        return state if isinstance(state, dict) else {}


@dataclass(frozen=True, eq=False, repr=False)
class Storage:
    """A torch storage: a flat array, read-only."""

    values: Array
    bfloat16: bool = False


@dataclass(eq=False, repr=False)
class Pending:
    """An array or dtype that the next BUILD completes; `keys` are the memo slots to patch then."""

    kind: str  # "array" or "dtype"
    dtype: np.dtype[Any]
    keys: list[int] = field(default_factory=list)


# ---------------------------------------------------------------- numpy


def build_dtype(args: tuple[Any, ...], budget: Budget) -> Any:
    """dtype("f4", False, True); object and structured types stay opaque."""
    code = _text(args[0]) if args else ""
    if not re.fullmatch(r"b1|[iu][1248]|f[248]|c(8|16)|[SU]\d{1,6}", code):
        return Opaque(Named("numpy", "dtype"), args)
    return Pending("dtype", np.dtype(code))


def finish_dtype(pending: Pending, state: Any) -> np.dtype[Any]:
    """BUILD of a dtype: only its byte order is read."""
    if not isinstance(state, tuple) or len(state) < 2:
        raise Malformed("a dtype without a state")
    return ordered(pending.dtype, _text(state[1]))


def ordered(dtype: np.dtype[Any], order: str) -> np.dtype[Any]:
    """A dtype in the byte order "<" or ">"; as it is for any other word."""
    if order == "<":
        return dtype.newbyteorder("<")
    return dtype.newbyteorder(">") if order == ">" else dtype


def start_array(args: tuple[Any, ...], budget: Budget) -> Any:
    """numpy's _reconstruct(ndarray, (0,), b"b"): an empty array that BUILD fills."""
    if not args or not isinstance(args[0], Named) or args[0] != Named("numpy", "ndarray"):
        return Opaque(Named("numpy", "_reconstruct"), args)
    return Pending("array", np.dtype("u1"))


def finish_array(state: Any, budget: Budget) -> Any:
    """BUILD of an array: (version, shape, dtype, is_fortran, bytes)."""
    if not isinstance(state, tuple) or len(state) != 5:
        raise Malformed("an array without a state")
    _, shape, dtype, fortran, data = state
    if not isinstance(fortran, int):
        raise Malformed("an array without an order")
    return _array(shape, dtype, "F" if fortran else "C", data, budget)


def from_buffer(args: tuple[Any, ...], budget: Budget) -> Any:
    """numpy's _frombuffer(bytes, dtype, shape, order) of protocol 5."""
    data, dtype, shape, order = args
    return _array(shape, dtype, _text(order), data, budget)


def scalar(args: tuple[Any, ...], budget: Budget) -> Any:
    """numpy's scalar(dtype, bytes)."""
    dtype, data = args
    value = _array((), dtype, "C", data, budget)
    return value[()] if isinstance(value, np.ndarray) else value


def _array(shape: Any, dtype: Any, order: str, data: Any, budget: Budget) -> Any:
    dtype = dtype.dtype if isinstance(dtype, Pending) else dtype
    if not isinstance(dtype, np.dtype):
        return Opaque(Named("numpy", "ndarray"), (shape, dtype, data))
    if not isinstance(data, (bytes, bytearray, str)):
        raise Malformed(f"an array of a {type(data).__name__}")
    budget.spend(len(data))
    data = data.encode("latin-1") if isinstance(data, str) else data
    sizes = _sizes(shape)
    if len(data) != math.prod(sizes) * dtype.itemsize:
        raise Malformed(f"an array of shape {sizes} that does not fit its bytes")
    if dtype.itemsize == 0 or order not in ("C", "F"):
        raise Malformed("an array of unknown layout")
    flat = np.frombuffer(bytes(data), dtype)
    return flat.reshape(sizes, order="F" if order == "F" else "C")


# ---------------------------------------------------------------- torch

_STORAGES = {
    "FloatStorage": "f4", "DoubleStorage": "f8", "HalfStorage": "f2", "BFloat16Storage": "u2", "LongStorage": "i8",
    "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "b1",
}  # fmt: skip


def storage(kind: Any, numel: Any, data: bytes, order: str) -> Storage:
    """A storage from a zip member; `order` is the byte order "<" or ">"."""
    if not isinstance(kind, Named) or kind.module != "torch" or kind.name not in _STORAGES:
        shown = kind if isinstance(kind, Named) else f"a {type(kind).__name__}"
        raise Malformed(f"tensor type {shown} is not read. Allowed: {', '.join(sorted(_STORAGES))}")
    dtype = ordered(np.dtype(_STORAGES[kind.name]), order)
    (count,) = _sizes((numel,))
    if len(data) != count * dtype.itemsize:
        raise Malformed(f"a storage of {count} numbers that holds {len(data)} bytes")
    values = np.frombuffer(data, dtype)
    return Storage(values.astype(dtype.newbyteorder("=")) if order == ">" else values, kind.name == "BFloat16Storage")


def tensor(args: tuple[Any, ...], budget: Budget) -> Any:
    """torch's _rebuild_tensor_v2(storage, offset, size, stride, ...) as an array; bfloat16 widens to float32, exactly."""
    held, offset, size, stride = args[0], args[1], args[2], args[3]
    if not isinstance(held, Storage):
        raise Malformed("a tensor without a storage")
    (start,), shape, steps = _sizes((offset,)), _sizes(size), _sizes(stride)
    if len(shape) != len(steps):
        raise Malformed(f"a tensor of shape {shape} and strides {steps}")
    budget.spend(math.prod(shape) * (4 if held.bfloat16 else held.values.itemsize))
    values = _strided(held.values, start, shape, steps)
    return _widened(values) if held.bfloat16 else values


def _strided(flat: Array, start: int, shape: tuple[int, ...], steps: tuple[int, ...]) -> Array:
    count = math.prod(shape)
    last = start + sum((n - 1) * step for n, step in zip(shape, steps, strict=True)) if count else start - 1
    if last >= flat.size or start > flat.size:
        raise Malformed(f"a tensor of shape {shape} that reaches outside its storage")
    contiguous, width = True, 1
    for n, step in zip(reversed(shape), reversed(steps), strict=True):
        contiguous, width = contiguous and (step == width or n == 1), width * n
    if contiguous or count == 0:
        return flat[start : start + count].reshape(shape)
    view = np.lib.stride_tricks.as_strided(flat[start:], shape, [s * flat.itemsize for s in steps], writeable=False)
    return np.ascontiguousarray(view)


def _widened(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)


# ---------------------------------------------------------------- Python's own


def ordered_dict(args: tuple[Any, ...], budget: Budget) -> Any:
    pairs = args[0] if args else []
    if not isinstance(pairs, (list, tuple)):
        raise Malformed(f"an ordered dict of a {type(pairs).__name__}")
    budget.spend(_ENTRY * len(pairs))
    if any(not isinstance(p, (list, tuple)) or len(p) != 2 for p in pairs):
        raise Malformed("an ordered dict of something else than pairs")
    result: dict[Any, Any] = {}
    for key, value in pairs:
        result[budget.key(key)] = value
    return result


def _encode(args: tuple[Any, ...], budget: Budget) -> Any:
    """_codecs.encode(text, "latin1"): how protocols 0 to 2 write bytes."""
    if len(args) == 2 and all(isinstance(a, str) for a in args) and args[1] in ("latin1", "latin-1"):
        budget.spend(len(args[0]))
        return args[0].encode("latin-1")
    return Opaque(Named("_codecs", "encode"), args)


def _collection(kind: str) -> Builder:
    def build(args: tuple[Any, ...], budget: Budget) -> Any:
        if len(args) > 1 or (args and not isinstance(args[0], (list, tuple))):
            return Opaque(Named("builtins", kind), args)
        values = args[0] if args else ()
        budget.spend(_ENTRY * len(values))
        if kind == "tuple":
            return tuple(values)
        members = [budget.key(v) for v in values]
        return set(members) if kind == "set" else frozenset(members)

    return build


def hashable(key: Any, depth: int = KEY_DEPTH) -> Any:
    """`key`, if it may stand in a dict or set. Deep or wide tuples and sets are refused: to hash or compare them is a
    bomb of its own."""
    if isinstance(key, (tuple, frozenset)) and depth and len(key) <= KEY_WIDTH:
        for part in key:
            hashable(part, depth - 1)
    elif not isinstance(key, (str, bytes, int, float, complex, np.generic, Named, Opaque, type(None))):
        raise Malformed(f"a {type(key).__name__} as a key")
    return key


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if not isinstance(value, str):
        raise Malformed(f"a {type(value).__name__} where a name belongs")
    return value


def _sizes(values: Any) -> tuple[int, ...]:
    values = (values,) if type(values) is int else values
    if not isinstance(values, tuple) or len(values) > MAX_DIMS or not all(map(_is_size, values)):
        raise Malformed("sizes that are no small tuple of whole numbers")
    return values


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0 and value.bit_length() <= SIZE_BITS


BUILDERS: dict[tuple[str, str], Builder] = {
    ("collections", "OrderedDict"): ordered_dict,
    ("numpy", "dtype"): build_dtype,
    ("torch._utils", "_rebuild_tensor_v2"): tensor,
    ("torch._utils", "_rebuild_parameter"): lambda args, budget: args[0],
    ("torch", "Size"): _collection("tuple"),
    ("_codecs", "encode"): _encode,
    **{(m, "_reconstruct"): start_array for m in ("numpy.core.multiarray", "numpy._core.multiarray")},
    **{(m, "scalar"): scalar for m in ("numpy.core.multiarray", "numpy._core.multiarray")},
    **{(m, "_frombuffer"): from_buffer for m in ("numpy.core.numeric", "numpy._core.numeric")},
    **{(m, kind): _collection(kind) for m in ("builtins", "__builtin__") for kind in ("set", "frozenset")},
    ("__builtin__", "bytes"): lambda args, budget: b"" if not args else Opaque(Named("builtins", "bytes"), args),
}
