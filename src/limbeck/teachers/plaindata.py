"""What the inert pickle reader may build: numpy arrays, torch tensors as arrays, ordered dicts; records for all else.

Each builder here does by hand what the named function would do for plain data. None of them imports the name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from limbeck.contracts import Array

Builder = Callable[[tuple[Any, ...]], Any]  # a call's arguments -> the value
MAX_ARRAY_BYTES = 512 * 2**20  # of one array after strides are applied


class Malformed(ValueError):
    """The bytes are no well-formed pickle, or not one of the kind that is read here."""


@dataclass(frozen=True)
class Named:
    """A class or function that the file names. Never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
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


@dataclass(frozen=True)
class Storage:
    """A torch storage: a flat array, read-only."""

    values: Array
    bfloat16: bool = False


@dataclass(eq=False)
class Pending:
    """An array or dtype that the next BUILD completes; `keys` are the memo slots to patch then."""

    kind: str  # "array" or "dtype"
    dtype: np.dtype[Any]
    keys: list[int] = field(default_factory=list)


# ---------------------------------------------------------------- numpy


def build_dtype(args: tuple[Any, ...]) -> Any:
    """dtype("f4", False, True); object and structured types stay opaque."""
    code = _text(args[0]) if args else ""
    if not re.fullmatch(r"b1|[iu][1248]|f[248]|c(8|16)|[SU]\d{1,6}", code):
        return Opaque(Named("numpy", "dtype"), args)
    return Pending("dtype", np.dtype(code))


def finish_dtype(pending: Pending, state: Any) -> np.dtype[Any]:
    """BUILD of a dtype: only its byte order is read."""
    if not isinstance(state, tuple) or len(state) < 2:
        raise Malformed("a dtype without a state")
    order = _text(state[1])
    return pending.dtype.newbyteorder(order) if order in ("<", ">") else pending.dtype  # type: ignore[arg-type]


def start_array(args: tuple[Any, ...]) -> Any:
    """numpy's _reconstruct(ndarray, (0,), b"b"): an empty array that BUILD fills."""
    if not args or args[0] != Named("numpy", "ndarray"):
        return Opaque(Named("numpy", "_reconstruct"), args)
    return Pending("array", np.dtype("u1"))


def finish_array(pending: Pending, state: Any) -> Any:
    """BUILD of an array: (version, shape, dtype, is_fortran, bytes)."""
    if not isinstance(state, tuple) or len(state) != 5:
        raise Malformed("an array without a state")
    _, shape, dtype, fortran, data = state
    return _array(shape, dtype, "F" if fortran else "C", data)


def from_buffer(args: tuple[Any, ...]) -> Any:
    """numpy's _frombuffer(bytes, dtype, shape, order) of protocol 5."""
    data, dtype, shape, order = args
    return _array(shape, dtype, _text(order), data)


def scalar(args: tuple[Any, ...]) -> Any:
    """numpy's scalar(dtype, bytes)."""
    dtype, data = args
    value = _array((), dtype, "C", data)
    return value[()] if isinstance(value, np.ndarray) else value


def _array(shape: Any, dtype: Any, order: str, data: Any) -> Any:
    dtype = dtype.dtype if isinstance(dtype, Pending) else dtype
    if not isinstance(dtype, np.dtype):
        return Opaque(Named("numpy", "ndarray"), (shape, dtype, data))
    data = data.encode("latin-1") if isinstance(data, str) else data
    sizes = _sizes(shape)
    if not isinstance(data, (bytes, bytearray)) or len(data) != math.prod(sizes) * dtype.itemsize:
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
        raise Malformed(f"tensor type {kind} is not read. Allowed: {', '.join(sorted(_STORAGES))}")
    dtype = np.dtype(_STORAGES[kind.name]).newbyteorder(order)  # type: ignore[arg-type]
    (count,) = _sizes((numel,))
    if len(data) != count * dtype.itemsize:
        raise Malformed(f"a storage of {count} numbers that holds {len(data)} bytes")
    values = np.frombuffer(data, dtype)
    return Storage(values.astype(dtype.newbyteorder("=")) if order == ">" else values, kind.name == "BFloat16Storage")


def tensor(args: tuple[Any, ...]) -> Any:
    """torch's _rebuild_tensor_v2(storage, offset, size, stride, ...) as an array; bfloat16 widens to float32, exactly."""
    held, offset, size, stride = args[0], args[1], args[2], args[3]
    if not isinstance(held, Storage):
        raise Malformed("a tensor without a storage")
    (start,), shape, steps = _sizes((offset,)), _sizes(size), _sizes(stride)
    if len(shape) != len(steps) or math.prod(shape) * held.values.itemsize > MAX_ARRAY_BYTES:
        raise Malformed(f"a tensor of shape {shape} and strides {steps}")
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


def ordered_dict(args: tuple[Any, ...]) -> Any:
    pairs = args[0] if args else []
    if not isinstance(pairs, (list, tuple)) or any(not isinstance(p, (list, tuple)) or len(p) != 2 for p in pairs):
        raise Malformed("an ordered dict of something else than pairs")
    result: dict[Any, Any] = {}
    for key, value in pairs:
        result[hashable(key)] = value
    return result


def _encode(args: tuple[Any, ...]) -> Any:
    """_codecs.encode(text, "latin1"): how protocols 0 to 2 write bytes."""
    if len(args) == 2 and isinstance(args[0], str) and args[1] in ("latin1", "latin-1"):
        return args[0].encode("latin-1")
    return Opaque(Named("_codecs", "encode"), args)


def _collection(kind: str) -> Builder:
    def build(args: tuple[Any, ...]) -> Any:
        if len(args) > 1 or (args and not isinstance(args[0], (list, tuple))):
            return Opaque(Named("builtins", kind), args)
        values = args[0] if args else ()
        if kind == "tuple":
            return tuple(values)
        members = [hashable(v) for v in values]
        return set(members) if kind == "set" else frozenset(members)

    return build


def hashable(key: Any, depth: int = 2) -> Any:
    """`key`, if it may stand in a dict or set. Deep or wide tuples are refused: hashing them is a bomb of its own."""
    if isinstance(key, tuple) and depth and len(key) <= 16:
        for part in key:
            hashable(part, depth - 1)
    elif not isinstance(key, (str, bytes, int, float, complex, frozenset, np.generic, Named, Opaque, type(None))):
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
    if not isinstance(values, tuple) or len(values) > 32 or any(type(v) is not int or v < 0 for v in values):
        raise Malformed("sizes that are no small tuple of whole numbers")
    return values


BUILDERS: dict[tuple[str, str], Builder] = {
    ("collections", "OrderedDict"): ordered_dict,
    ("numpy", "dtype"): build_dtype,
    ("torch._utils", "_rebuild_tensor_v2"): tensor,
    ("torch._utils", "_rebuild_parameter"): lambda args: args[0],
    ("torch", "Size"): _collection("tuple"),
    ("_codecs", "encode"): _encode,
    **{(m, "_reconstruct"): start_array for m in ("numpy.core.multiarray", "numpy._core.multiarray")},
    **{(m, "scalar"): scalar for m in ("numpy.core.multiarray", "numpy._core.multiarray")},
    **{(m, "_frombuffer"): from_buffer for m in ("numpy.core.numeric", "numpy._core.numeric")},
    **{(m, kind): _collection(kind) for m in ("builtins", "__builtin__") for kind in ("set", "frozenset")},
    ("__builtin__", "bytes"): lambda args: b"" if not args else Opaque(Named("builtins", "bytes"), args),
}
