"""Pickles of a few bytes that would take minutes or gigabytes in a reader without bounds."""

from __future__ import annotations

import io
import zipfile

import pytest
from pickle_mutations import survived

from limbeck.teachers import inert


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def long(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8b" + len(data).to_bytes(4, "little") + data


LEVELS = b"2\x86" * 64  # 2**64 leaves when written out
ARRAY = b"cnumpy._core.numeric\n_frombuffer\n(C\x04aaaacnumpy\ndtype\n(" + text("f4") + b"tR"
SHARED = 2**61 - 1  # whole numbers whose distance is a multiple of this have one hash
BOMBS = {
    "a name written out": b"(" + text("storage") + b"ctorch\nFloatStorage\nK\x01" + LEVELS + text("cpu") + b"K\x01tQ.",
    "a type written out": b"(" + text("storage") + b"K\x01" + LEVELS + text("0") + text("cpu") + b"K\x01tQ.",
    "a key written out": b"}K\x01" + LEVELS + b"Ns.",
    "a function written out": b"K\x01" + LEVELS + b")R.",
    "a long integer": long(2**8_000_000) + b".",
    "a long product": ARRAY + b"(" + long(2**500) + b"2" * 31 + b"t" + text("C") + b"tR.",
    "a wide product": ARRAY + b"(" + long(2**60) + b"2" * 31 + b"t" + text("C") + b"tR.",
    "numbers with one hash": b"}(" + b"".join(long(n * SHARED) + b"N" for n in range(40_000)) + b"u.",
    "one text encoded again and again": (
        b"c_codecs\nencode\nq\x000" + text("a" * 2**20) + text("latin1") + b"\x86q\x010(" + b"h\x00h\x01R" * 20_000 + b"l."
    ),
    "one list copied again and again": (
        b"ctorch\nSize\nq\x000(" + b"N" * 100_000 + b"l\x85q\x010(" + b"h\x00h\x01R" * 20_000 + b"l."
    ),
    "one long name in many": (
        text("a" * 2**22) + b"q\x000(" + b"".join(b"h\x00" + text(str(n)) + b"\x93" for n in range(20_000)) + b"l."
    ),
    "many names": b"(" + b"".join(b"ca\nb%d\n" % n for n in range(100_000)) + b"l.",
    "one array finished again and again": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR" + b"2" * 50_000
        + b"".join(b"r" + n.to_bytes(4, "little") for n in range(1, 200_000)) + b"(K\x01(K\x00tcnumpy\ndtype\n(" + text("f4")
        + b"tR\x89C\x00tq\x000" + b"h\x00b0" * 50_000 + b"."
    ),
    "one array many times": ARRAY + b"(K\x01t" + text("C") + b"tRq\x000(" + b"h\x00" * 10 + b"l.",
}  # fmt: skip


@pytest.mark.parametrize("what", list(BOMBS))
def test_few_bytes_make_little(what: str) -> None:
    """Copies, products, hashes, comparisons and messages: each took minutes or gigabytes."""
    content, file = b"\x80\x04" + BOMBS[what], io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", content)
        archive.writestr("x/data/0", b"1234")
    harmless = what.startswith("one array ")
    assert survived(lambda: inert.opaque_names(inert.read_torch_zip(file.getvalue()))) is harmless
    survived(lambda: inert.names_in(content))


def twins(levels: int) -> bytes:
    """Two equal sets that share nothing, as keys of one dict: to compare them takes 2**levels steps."""
    level = b"(" + b"h\x00" + b"h\x00K\x01\x86" + b"\x91q\x00" + b"0"
    one = b"(K\x05\x91q\x000" + level * levels + b"h\x00"
    return b"\x80\x04}(" + one + b"N" + one + b"Nu."


def test_nested_sets_are_no_keys() -> None:
    assert not survived(lambda: inert.read_pickle(twins(60)))
