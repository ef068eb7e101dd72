from __future__ import annotations

import io
import resource
import struct
import zipfile
from pathlib import Path

import pytest

from limbeck.errors import InputError
from limbeck.teachers import archive
from limbeck.teachers.archive import Archive


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def bomb(member: str, mebibytes: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file, file.open(member, "w", force_zip64=True) as stream:
        for _ in range(mebibytes):
            stream.write(b" " * 2**20)
    return buffer.getvalue()


def test_members_come_back() -> None:
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        opened = Archive(zipped({"a": b"1", "b/c": b"22"}, compression), "x")
        assert opened.members == ("a", "b/c")
        assert opened.read("b/c") == b"22"
        assert opened.size("a") == 1
    with pytest.raises(InputError, match="no member 'z'"):
        opened.read("z")


def test_a_bomb_is_refused_before_it_unpacks() -> None:
    content = bomb("data", 300)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="unpacks to 314,572,800 bytes"):
        Archive(content, "x")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


@pytest.mark.parametrize(
    ("what", "content"),
    [
        ("unpacks 1", bomb("data", 8)),
        ("1001 members", zipped({str(i): b"" for i in range(1001)})),
        ("points outside", zipped({"../x": b""})),
        ("points outside", zipped({"a/../../x": b""})),
        ("points outside", zipped({"/etc/x": b""})),
        ("points outside", zipped({"C:x": b""})),
        ("points outside", zipped({"..\\x": b""})),
        ("compression method", zipped({"x": b"1" * 100}, zipfile.ZIP_LZMA)),
        ("damaged", b""),
        ("damaged", b"PK\x03\x04"),
        ("damaged", b"not a zip at all"),
    ],
)
def test_hostile_archives_are_refused(what: str, content: bytes) -> None:
    with pytest.raises(InputError, match=what):
        Archive(content, "x")


def test_links_duplicates_and_encrypted_members_are_refused() -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(InputError, match="is a link"):
        Archive(buffer.getvalue(), "x")
    twice = zipped({"aa": b"1", "ab": b"2"}).replace(b"ab", b"aa")
    with pytest.raises(InputError, match="appears twice"):
        Archive(twice, "x")
    locked = bytearray(zipped({"a": b"1"}))
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(InputError, match="encrypted"):
        Archive(bytes(locked), "x")


def test_many_entries_are_refused_before_they_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("parsed"))
    with pytest.raises(InputError, match="more than 1000"):
        Archive(b"PK\x03\x04" + b"PK\x01\x02" * 20_001, "x")


def test_total_size_and_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    content = zipped({"a": b"1" * 60, "b": b"2" * 60})
    monkeypatch.setattr(archive, "TOTAL_CAP", 100)
    with pytest.raises(InputError, match="unpacks to 120 bytes"):
        Archive(content, "x")
    monkeypatch.undo()
    quoted = bytearray(zipped({"a": b"1" * 60}))
    place = quoted.index(b"PK\x01\x02") + 20
    quoted[place : place + 8] = struct.pack("<II", 10**6, 10**6)
    with pytest.raises(InputError, match="overlap"):
        Archive(bytes(quoted), "x")


@pytest.mark.parametrize("claimed", [10, 1000])
def test_a_size_that_lies_is_found_while_reading(claimed: int) -> None:
    content = bytearray(zipped({"a": bytes(range(100))}, zipfile.ZIP_DEFLATED))
    place = content.index(b"PK\x01\x02") + 24
    content[place : place + 4] = struct.pack("<I", claimed)
    opened = Archive(bytes(content), "x")
    with pytest.raises(InputError, match="damaged"):
        opened.read("a")


def test_every_prefix_of_a_real_teacher_is_refused(cartpole_zip: Path) -> None:
    content = cartpole_zip.read_bytes()
    for length in [*range(0, len(content), 1013), len(content) - 1]:
        with pytest.raises(InputError):
            Archive(content[:length], "x")


def test_flipped_bytes_are_found() -> None:
    content = zipped({"a": bytes(100)})
    for place in range(40, 120):
        changed = bytearray(content)
        changed[place] ^= 0xFF
        with pytest.raises(InputError, match="damaged"):
            Archive(bytes(changed), "x").read("a")


def test_names_for_messages_are_harmless() -> None:
    assert archive.listed(("a\x1b[31m",)) == "a\\x1b[31m"
    assert archive.listed(tuple("abcdefghij")) == "a, b, c, d, e, f, g, h and 2 more"
    assert archive.listed(()) == "nothing"
