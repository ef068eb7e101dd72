"""Reading a zip that a stranger made: every limit is checked before anything is decompressed, and nothing is extracted."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib

from limbeck.errors import InputError, printable

MEMBER_CAP = 256 * 2**20  # bytes one member may unpack to
TOTAL_CAP = 512 * 2**20  # bytes all members together may unpack to
MAX_MEMBERS = 1000
MAX_RATIO = 200  # unpacked : packed, for members above RATIO_FLOOR
RATIO_FLOOR = 2**20
_ENTRY = b"PK\x01\x02"  # signature of one entry of the central directory
_END = b"PK\x05\x06"  # signature of the record that ends a zip
_DAMAGE = (  # what zipfile and numpy raise on archives that were cut or changed (NotImplementedError: an unknown method)
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    IndexError,
    KeyError,
    OverflowError,
    OSError,
)


class Archive:
    """The members of a zip held in memory, by name."""

    def __init__(self, content: bytes, name: str) -> None:
        self.name = printable(name)
        if content.count(_ENTRY) > 20 * MAX_MEMBERS:  # before zipfile builds an object per entry
            raise self.refused(f"more than {MAX_MEMBERS} members")
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(content))
            infos = self._zip.infolist()
        except _DAMAGE as error:
            raise self.damaged(error) from error
        self._check_edges(infos, content)
        self._check_whole(infos, len(content))
        for info in infos:
            self._check_member(info)
        self._infos = {info.filename: info for info in infos}

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(self._infos)

    def size(self, member: str) -> int:
        """Unpacked bytes the member declares; reading never gives more."""
        return self._infos[member].file_size

    def read(self, member: str) -> bytes:
        """One whole member, its checksum verified."""
        if member not in self._infos:
            raise InputError(
                f"{self.name} has no member {printable(member)!r}. It holds: {listed(self.members)}. Save the teacher again."
            )
        info = self._infos[member]
        try:
            with self._zip.open(info) as stream:
                content = stream.read(info.file_size + 1)
        except _DAMAGE as error:
            raise self.damaged(error) from error
        if len(content) != info.file_size:
            raise self.damaged(ValueError(f"{member} unpacks to another size than it declares"))
        return content

    def refused(self, why: str) -> InputError:
        return InputError(
            f"{self.name}: {why}. Allowed: at most {MAX_MEMBERS} plain members, {MEMBER_CAP >> 20} MiB each, "
            f"{TOTAL_CAP >> 20} MiB together, packed at most {MAX_RATIO}:1. Save the teacher again."
        )

    def damaged(self, error: Exception) -> InputError:
        return InputError(
            f"{self.name} is a damaged or truncated zip: {printable(error) or type(error).__name__}. Copy or save it again."
        )

    def _check_edges(self, infos: list[zipfile.ZipInfo], content: bytes) -> None:
        """zipfile accepts bytes before and after: a truncated teacher would be read as a zip that was stored in it."""
        end = content.rfind(_END) + 22 + len(self._zip.comment)
        if end != len(content) or min((info.header_offset for info in infos), default=0) != 0:
            raise self.damaged(ValueError("it does not begin and end where its table says"))

    def _check_whole(self, infos: list[zipfile.ZipInfo], length: int) -> None:
        if len(infos) > MAX_MEMBERS:
            raise self.refused(f"{len(infos)} members")
        names = [info.filename for info in infos]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise self.refused(f"member {printable(twice)!r} appears twice")
        total = sum(info.file_size for info in infos)
        if total > TOTAL_CAP:
            raise self.refused(f"it unpacks to {total:,} bytes")
        if sum(info.compress_size for info in infos) > length:
            raise self.refused("its members overlap")

    def _check_member(self, info: zipfile.ZipInfo) -> None:
        name, shown = info.filename, printable(info.filename)
        if info.orig_filename != name:  # zipfile cuts names at a NUL byte
            raise self.refused(f"member {shown!r} hides part of its name")
        if name.startswith(("/", "\\")) or ":" in name or ".." in name.replace("\\", "/").split("/"):
            raise self.refused(f"member {shown!r} points outside the archive")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise self.refused(f"member {shown!r} is a link")
        if info.flag_bits & 1:
            raise self.refused(f"member {shown!r} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise self.refused(f"member {shown!r} uses compression method {info.compress_type}")
        if info.file_size > MEMBER_CAP:
            raise self.refused(f"member {shown!r} unpacks to {info.file_size:,} bytes")
        if info.file_size > RATIO_FLOOR and info.file_size > MAX_RATIO * max(info.compress_size, 1):
            raise self.refused(f"member {shown!r} unpacks {info.file_size // max(info.compress_size, 1)}:1")


def is_zip(content: bytes) -> bool:
    """Whether the content begins as a zip does (a zip hidden behind other bytes is not read as one)."""
    return content[:4] in (b"PK\x03\x04", b"PK\x05\x06")


def listed(names: tuple[str, ...], limit: int = 8) -> str:
    """Names for a message, safe for a terminal, the first few only."""
    shown = ", ".join(printable(name, 60) for name in names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown or "nothing"
