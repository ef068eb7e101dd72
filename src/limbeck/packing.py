"""Whole numbers of 8, 4 or 2 bits side by side in bytes, the first in the lowest bits."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from limbeck.contracts import Array, Floats


def pack(numbers: Array, bits: int) -> NDArray[np.uint8]:
    """[ceil(n bits / 8)] bytes of n numbers in 0..2**bits - 1, in row order; the last byte's free bits are zero.

    >>> pack(np.array([1, 2, 3, 4, 15]), 4).tolist()
    [33, 67, 15]
    """
    each = 8 // bits
    flat = np.zeros(-(-numbers.size // each) * each, np.uint8)
    flat[: numbers.size] = numbers.reshape(-1)
    shifted = flat.reshape(-1, each) << (bits * np.arange(each, dtype=np.uint8))
    return np.bitwise_or.reduce(shifted, axis=1).astype(np.uint8)


def unpack(content: Array, bits: int, count: int) -> NDArray[np.uint8]:
    """[count] numbers that `pack` put into bytes; ValueError where the bytes are too few, too many, or not clean.

    >>> unpack(np.array([33, 67, 15], np.uint8), 4, 5).tolist()
    [1, 2, 3, 4, 15]
    """
    each = 8 // bits
    if content.dtype != np.uint8 or content.shape != (-(-count // each),):
        raise ValueError(f"{count} numbers of {bits} bits in {content.dtype} bytes of shape {content.shape}")
    apart = content[:, None] >> (bits * np.arange(each, dtype=np.uint8)) & (2**bits - 1)
    flat = apart.reshape(-1)
    if flat[count:].any():
        raise ValueError(f"numbers behind the last of {count}")
    return flat[:count].astype(np.uint8)


def signed(content: Array, bits: int, shape: tuple[int, ...]) -> Floats:
    """Weights of 4 or 2 bits from bytes, in which they lie raised by half their range; ValueError as `unpack`.

    >>> signed(pack(np.array([-8, 0, 7, 1]) + 8, 4), 4, (2, 2)).tolist()
    [[-8.0, 0.0], [7.0, 1.0]]
    """
    raised = unpack(content, bits, math.prod(shape)).astype(np.float32)
    return raised.reshape(shape) - np.float32(2 ** (bits - 1))
