"""Teachers on the Hugging Face Hub, as `hf://ORG/REPO:FILE` or `hf://ORG/REPO:FILE@REVISION`.

huggingface_hub downloads the one file that is named into its own cache, and works from there without a network. The
file then goes through the same formats as any other: nothing in it is executed, files beside it are not fetched. The
cache names content by its digest (SHA-256 for large files, git's for small ones), and what is read is compared with it.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import InputError, missing_library, printable
from limbeck.teachers import files
from limbeck.teachers.files import File

PREFIX = "hf://"
EXAMPLE = "hf://ORG/REPO:FILE or hf://ORG/REPO:FILE@REVISION"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"


@dataclass(frozen=True)
class Address:
    """One file of one repository."""

    repo: str
    file: str
    revision: str = "main"  # branch, tag or commit

    def __str__(self) -> str:
        return f"{PREFIX}{self.repo}:{self.file}" + (f"@{self.revision}" if self.revision != "main" else "")


@dataclass(frozen=True)
class Fetched:
    """A file of the Hub in hand."""

    file: File
    address: Address
    commit: str

    @property
    def facts(self) -> dict[str, str]:
        return {"repo": self.address.repo, "file": self.address.file, "revision": self.address.revision, "commit": self.commit}  # fmt: skip

    @property
    def pinned(self) -> str:
        """The address of exactly this version."""
        return str(Address(self.address.repo, self.address.file, self.commit))


def is_address(source: object) -> bool:
    return isinstance(source, str) and source.startswith(PREFIX)


def parse(text: str) -> Address:
    """The parts of an address. Raises InputError for what is none, paths that lead elsewhere included.

    >>> parse("hf://org/repo:folder/model.zip@v1")
    Address(repo='org/repo', file='folder/model.zip', revision='v1')
    """
    repo, _, rest = text.removeprefix(PREFIX).partition(":")
    file, _, revision = rest.rpartition("@") if "@" in rest else (rest, "", "main")
    parts = [*file.split("/"), *revision.split("/")]
    if (
        not re.fullmatch(rf"{_NAME}/{_NAME}", repo)
        or any(part in ("", ".", "..") for part in parts)
        or not (file + revision).isprintable()
        or re.search(r"[\\:?#%]|^[~]", file) is not None
        or re.fullmatch(r"[\w./+-]{1,200}", revision) is None
    ):
        raise InputError(
            f"{printable(text)} is no file on the Hub. Allowed: {EXAMPLE}, the file inside the repository."
        )
    return Address(repo, file, revision)


def fetch(text: str) -> Fetched:
    """The file behind an address, from the cache if it is there. Raises InputError where it cannot be had or is not
    what the cache says it is."""
    address = parse(text)
    path = _download(address)
    real = Path(os.path.realpath(path))
    content = files.read(real).content
    _compare(content, real, address)
    return Fetched(File(Path(f"{PREFIX}{address.repo}:{address.file}"), content), address, _commit(path))


def cached(text: str) -> Path:
    """Where a fetched file lies, its content compared: for files that go beside a teacher."""
    fetch(text)
    return _download(parse(text))


def _download(address: Address) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise missing_library("huggingface_hub", "hub", "a teacher on the Hugging Face Hub") from error
    endpoint = os.environ.get("HF_ENDPOINT") or None
    asked: dict[str, Any] = {"revision": address.revision, "endpoint": endpoint}
    try:
        if _is_commit(address.revision):
            found = huggingface_hub.try_to_load_from_cache(address.repo, address.file, revision=address.revision)
            if isinstance(found, str):
                return Path(found)
        url = huggingface_hub.hf_hub_url(address.repo, address.file, **asked)
        offline = not _is_within_reach(url, address, huggingface_hub, errors)
        return Path(huggingface_hub.hf_hub_download(address.repo, address.file, local_files_only=offline, **asked))
    except InputError:
        raise
    except Exception as error:  # the library's own errors and its network library's share no base
        raise InputError(f"{address} cannot be had: {_reason(error, errors)}") from error


def _is_within_reach(url: str, address: Address, library: Any, errors: Any) -> bool:
    """Whether the Hub answers. Raises what it refuses, and InputError for a file that is too large."""
    try:
        size = library.get_hf_file_metadata(url).size
    except Exception as error:
        if isinstance(error, errors.HfHubHTTPError) and error.response.status_code < 500:
            raise
        return False  # no network, or a Hub in trouble: the cache may have it; asking again takes the library long
    if (size or 0) > files.MAX_FILE:
        raise InputError(f"{address} holds {size:,} bytes. Allowed: {files.MAX_FILE:,}. Give the policy alone.")
    return True


def _is_commit(revision: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def _reason(error: Exception, errors: Any) -> str:
    """One line on what went wrong and what to do; the library's messages run over many."""
    if isinstance(error, errors.GatedRepoError):
        return "its owner asks for an agreement. Accept it on the Hub and set HF_TOKEN."
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no such repository, or it is private. Check the name; for a private one set HF_TOKEN."
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision. Name a branch, a tag or a commit."
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        return "it is not in the cache, and the Hub was not reached. Fetch it once with a network."
    if isinstance(error, errors.EntryNotFoundError):
        return "the repository has no such file at that revision. Check its name on the Hub."
    line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__} {printable(line, 120)}. Try again, or download the file yourself."


def _commit(path: Path) -> str:
    """The commit that a cached file belongs to: the cache keeps snapshots/COMMIT/FILE."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else "unknown"


def _compare(content: bytes, blob: Path, address: Address) -> None:
    """Refuse content that is not what its name in the cache says."""
    expected = blob.name
    if blob.parent.name != "blobs" or re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", expected) is None:
        return  # a cache without links keeps no digest
    if len(expected) == 64:
        digest = hashlib.sha256(content).hexdigest()
    else:
        digest = hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()  # git's
    if digest != expected:
        raise InputError(
            f"{address}: the cached file has the digest {digest}, the Hub says {expected}. It was changed or damaged: delete it ({printable(blob)}) and try again."
        )
