"""Damaged pickles for fuzzing: cuts, flipped bits, moved pieces, and fragments in the language of pickle itself."""

from __future__ import annotations

import resource
import struct
import time
from collections.abc import Callable

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from limbeck.errors import LimbeckError

SECONDS = 5.0  # that one reading may take, on a busy machine
MEBIBYTES = 400  # that the peak may grow by during a whole test

FRAGMENTS = (
    b"2\x86" * 40,  # a tuple of itself twice, over and over
    b"0", b"1", b"2", b"(", b"t", b"\x85", b"\x86", b"\x87", b"]", b"}", b"\x8f", b"\x90", b"\x91", b")", b"a", b"e",
    b"s", b"u", b"b", b"R", b"\x81", b"\x92", b"\x93", b"\x94", b"Q", b"N", b"\x88", b"l", b"d", b"o", b".",
    b"h\x00", b"h\x05", b"q\x00", b"j\xff\xff\xff\x7f", b"r\xff\xff\xff\x7f", b"P0\n",
    b"\x8b\x80\x00\x00\x00" + b"\xff" * 127 + b"\x7f",  # a long integer
    b"\x8a\x09" + b"\xff" * 8 + b"\x7f", b"J\xff\xff\xff\xff", b"J\xff\xff\xff\x7f", b"K\x00",
    b"G" + struct.pack(">d", float("nan")), b"G" + struct.pack(">d", float("inf")), b"G" + struct.pack(">d", 1e308),
    b"C\x08" + b"\xff" * 8, b"X\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 8, b"cio\nopen\n", b"cnumpy\nndarray\n",
    b"cnumpy\ndtype\n", b"(X\x02\x00\x00\x00f8I0\nI1\ntR", b"ctorch._utils\n_rebuild_tensor_v2\n",
)  # fmt: skip
_place = st.integers(0, 2**16 - 1)  # of 2**16 parts of the content
edits = st.lists(
    st.tuples(st.just("flip"), _place, st.integers(0, 7))
    | st.tuples(st.just("byte"), _place, st.integers(0, 255))
    | st.tuples(st.just("insert"), _place, st.integers(0, len(FRAGMENTS) - 1))
    | st.tuples(st.just("replace"), _place, st.integers(0, len(FRAGMENTS) - 1))
    | st.tuples(st.just("cut"), _place, st.integers(1, 64))
    | st.tuples(st.just("end"), _place, st.just(0))
    | st.tuples(st.just("copy"), _place, _place),
    min_size=1,
    max_size=5,
)


def fuzzed(count: int) -> settings:
    """So many examples, the same ones every time."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    return settings(max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=slow)


def mutated(content: bytes, changes: list[tuple[str, int, int]]) -> bytes:
    data = bytearray(content)
    for kind, place, value in changes:
        at = place * len(data) >> 16
        match kind:
            case "flip" if data:
                data[at] ^= 1 << value
            case "byte" if data:
                data[at] = value
            case "insert":
                data[at:at] = FRAGMENTS[value]
            case "replace":
                data[at : at + len(FRAGMENTS[value])] = FRAGMENTS[value]
            case "cut":
                del data[at : at + value]
            case "end":
                del data[at:]
            case "copy":
                data[at : at + 24] = data[(value * len(data) >> 16) :][:24]
    return bytes(data)


def peak() -> int:
    """MiB that this process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def survived(read: Callable[[], object]) -> bool:
    """Whether it was read. Anything but an answer or our error of one line, soon, is a failure."""
    began, before, said = time.monotonic(), peak(), None
    try:
        read()
    except LimbeckError as error:
        said = str(error)
    assert time.monotonic() - began < SECONDS
    assert peak() - before < MEBIBYTES
    assert said is None or ("\n" not in said and 0 < len(said) < 2000)
    return said is None
