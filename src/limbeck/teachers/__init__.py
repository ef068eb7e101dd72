"""Any trained policy as a Teacher: files by their content, torch modules, callables. Nothing in a file is executed.

Stable-Baselines3 .zip (MLP)          read by `sb3`
torch state dict of such a policy     the same, without the zip's settings
Limbeck .safetensors                  read by `limbeck_file`
torch.nn.Module, callable             read by `modules`, also as the text "package.module:attribute"
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.contracts import Array, Blueprint, Policy, Spec, Teacher, TeacherInfo
from limbeck.errors import InputError, UnsafeError, printable
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.teachers import inert, limbeck_file, modules, networks, normaliser, sb3, stated
from limbeck.teachers.archive import Archive, is_zip, listed
from limbeck.teachers.plaindata import Opaque
from limbeck.teachers.sidecar import with_sidecar

__all__ = ["inspect", "load"]

MAX_FILE = 1024 * 2**20
_SUFFIXES = {
    "sb3": (".zip",),
    "limbeck": (".safetensors",),
    "torch": (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".safetensors"),
}

Source = str | os.PathLike[str] | Policy | Blueprint | Teacher | Callable[..., Any]


@dataclass(frozen=True)
class _File:
    """A file read once: what was hashed is what is used."""

    path: Path
    content: bytes

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


# ---------------------------------------------------------------- the two verbs


def load(
    source: Source, spec: Spec | None = None, normaliser: str | os.PathLike[str] | None = None, kind: str | None = None
) -> Teacher:
    """A teacher from a file, a module, a callable, a blueprint or a policy, checked against the task's spaces.

    `normaliser` is a VecNormalize file (None: one beside the teacher, if there is one); `kind` says how to read the
    output of a module or callable. Raises InputError for what is damaged or does not fit, UnsafeError for programs.
    """
    if isinstance(source, Teacher):
        return source
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        if not (_is_reference(text) and not os.path.lexists(text)):
            return _load_file(_read(Path(text)), spec, normaliser, kind)
        source = modules.imported(text)
    if normaliser is not None:
        raise InputError(
            "a normaliser was given for a teacher that is no file. Allowed: put it inside the module or the callable."
        )
    return _load_object(source, spec, kind)


def inspect(path: str | os.PathLike[str]) -> TeacherInfo:
    """What a teacher file is, states and hides. Runs nothing, needs no environment, refuses only what is unreadable."""
    file = _read(Path(path))
    try:
        format_, value = _open(file)
    except UnsafeError as error:
        names = {file.name: inert.names_in(file.content)} if not is_zip(file.content) else _zip_names(file)
        return TeacherInfo(str(path), "program", "unknown", file.sha256, {"code": names}, (file.name,), (str(error),))
    if format_ == "limbeck":
        drawn, provenance, notes = limbeck_file.policy(value[0], value[1], file.name, None)
        return _info(file, "limbeck", provenance, _shape_facts(drawn), notes)
    saved: sb3.Saved = value
    notes = _rebuilt_notes(saved)
    code = {f"data: {key}": inert.names_in(blob) for key, blob in saved.blobs.items()} | _zip_names(file)
    facts = {**sb3.facts(saved), "code": {printable(k): tuple(map(printable, v)) for k, v in code.items() if v}}
    info = TeacherInfo(str(path), format_, sb3.algorithm(saved), file.sha256, facts, saved.unread, notes)
    return with_sidecar(info, file.path)


# ---------------------------------------------------------------- objects


def _load_object(source: Any, spec: Spec | None, kind: str | None) -> Teacher:
    if isinstance(source, Blueprint):
        notes = stated.compare_spaces(source.spec, spec) if spec is not None else ()
        return Teacher(NumpyPolicy(source), TeacherInfo(source.name, "limbeck", "blueprint", "", notes=notes), source)
    if isinstance(source, Policy):
        notes = stated.compare_spaces(source.spec, spec) if spec is not None else ()
        return Teacher(source, TeacherInfo(type(source).__name__, "callable", "policy", "", notes=notes))
    if spec is None:
        raise InputError("a module or callable says nothing about its spaces. Name the environment it acts in.")
    if modules.is_module(source):
        return modules.from_module(source, spec, kind)
    if callable(source):
        return modules.from_callable(source, spec, kind)
    raise InputError(
        f"a {type(source).__name__} is no teacher. Allowed: a file, a torch.nn.Module, a callable, package.module:attribute, or a Limbeck policy."
    )


def _is_reference(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", text) is not None


# ---------------------------------------------------------------- files


def _load_file(file: _File, spec: Spec | None, given: str | os.PathLike[str] | None, kind: str | None) -> Teacher:
    if kind is not None:
        raise InputError(
            f"kind={printable(kind)!r} goes with modules and callables; {printable(file.name)} says itself what it is. Drop it."
        )
    format_, value = _open(file)
    if format_ == "limbeck":
        if given is not None:
            raise InputError(
                f"{printable(file.name)} is a Limbeck policy, whose normaliser is inside. Drop --normaliser."
            )
        drawn, provenance, notes = limbeck_file.policy(value[0], value[1], file.name, spec)
        return Teacher(NumpyPolicy(drawn), _info(file, "limbeck", provenance, _shape_facts(drawn), notes), drawn)
    saved: sb3.Saved = value
    statistics = _statistics(file, given)
    blueprint, notes, unread = sb3.policy(
        saved, spec or sb3.spec_of(saved), (statistics.content, statistics.name) if statistics else None
    )
    facts = sb3.facts(saved) | _shape_facts(blueprint)
    if statistics is not None:
        facts["normaliser_sha256"] = statistics.sha256
    info = TeacherInfo(
        str(file.path), format_, sb3.algorithm(saved), file.sha256, facts, (*saved.unread, *unread),
        (*_suffix_note(file, format_), *notes),
    )  # fmt: skip
    return Teacher(NumpyPolicy(blueprint), with_sidecar(info, file.path), blueprint)


def _open(file: _File) -> tuple[str, Any]:
    """("limbeck", (arrays, meta)), ("sb3", Saved) or ("torch", Saved), by the file's content alone."""
    content = file.content
    if is_zip(content):
        archive = Archive(content, file.name)
        if sb3.is_sb3(archive):
            return "sb3", sb3.read(archive)
        return "torch", _bare(inert.tensors(inert.read_torch_zip(content, file.name), file.name), file.name)
    if limbeck_file.looks_like(content):
        arrays, meta = limbeck_file.arrays_of(content, file.name)
        return ("limbeck", (arrays, meta)) if "limbeck" in meta else ("torch", _bare(arrays, file.name))
    if content[:1] == b"\x80" or content[-1:] == b".":
        return "torch", _bare(_pickled(file), file.name)
    raise InputError(
        f"{printable(file.name)} begins with {content[:8]!r}: no teacher format. Allowed: a Stable-Baselines3 zip, a Limbeck .safetensors, a torch state dict, or a module or callable in Python."
    )


def _pickled(file: _File) -> dict[str, Array]:
    """The state dict in a bare pickle. Programs are refused by name, whatever else is wrong with them."""
    names = inert.names_in(file.content)
    try:
        value = inert.read_pickle(file.content, file.name)
    except InputError:
        if any(name for name in names if not name.startswith(("(", "collections.", "torch.", "numpy."))):
            raise _program(file, names) from None
        raise
    if isinstance(value, Opaque) and "obs_rms" in value.attributes:
        raise InputError(
            f"{printable(file.name)} holds VecNormalize statistics, no policy. Give the policy's zip, and this with --normaliser."
        )
    if inert.opaque_names(value):
        raise _program(file, names)
    return inert.tensors(value, file.name)


def _program(file: _File, names: tuple[str, ...]) -> UnsafeError:
    return UnsafeError(
        f"{printable(file.name)} is a pickle that runs code when loaded ({listed(names)}). Refused, nothing was run. Allowed: a plain state dict, safetensors or a Stable-Baselines3 zip."
    )


def _bare(weights: Mapping[str, Array], name: str) -> sb3.Saved:
    """Weights alone: their names must be those of a Stable-Baselines3 policy, for nothing else says what to compute."""
    if not any(family.marker in weights for family in networks.FAMILIES.values()):
        raise InputError(
            f"{printable(name)} holds tensors ({listed(tuple(weights), 4)}) but not how to compute with them. Build the torch.nn.Module in Python, load them, and pass the module."
        )
    return sb3.from_weights(weights, name)


def _statistics(file: _File, given: str | os.PathLike[str] | None) -> _File | None:
    path = Path(given) if given is not None else normaliser.beside(file.path)
    return _read(path) if path is not None else None


def _read(path: Path) -> _File:
    """The whole file, once. Raises InputError where there is none."""
    shown = printable(path)
    try:
        with open(path, "rb", opener=_no_waiting) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE:
                raise InputError(f"{shown} is no regular file of at most {MAX_FILE >> 20} MiB. Give a teacher file.")
            content = stream.read(MAX_FILE + 1)
    except IsADirectoryError as error:
        raise InputError(f"{shown} is a folder. Give the teacher file inside it.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"no teacher at {shown}: {printable(reason)}. Give an existing file, or package.module:attribute."
        ) from error
    if not content:
        raise InputError(f"{shown} is empty. Copy or save the teacher again.")
    return _File(path, content)


def _no_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a named pipe without a writer would block for ever


# ---------------------------------------------------------------- what is told about them


def _info(
    file: _File, format_: str, provenance: Mapping[str, Any], facts: Mapping[str, Any], notes: tuple[str, ...]
) -> TeacherInfo:
    algorithm = printable(provenance.get("algorithm", "unknown"), 60)
    said = (*_suffix_note(file, format_), *notes)
    return with_sidecar(
        TeacherInfo(str(file.path), format_, algorithm, file.sha256, {**facts, **provenance}, (), said), file.path
    )


def _shape_facts(drawn: Blueprint) -> dict[str, Any]:
    return {"parameters": drawn.parameters, "head": drawn.head.kind, "normaliser": drawn.normaliser is not None}


def _suffix_note(file: _File, format_: str) -> tuple[str, ...]:
    usual = _SUFFIXES[format_]
    suffix = file.path.suffix.lower()
    return (
        ()
        if suffix in usual
        else (f"its name ends in {printable(suffix) or 'nothing'}, its content is {format_} (usually {usual[0]})",)
    )


def _rebuilt_notes(saved: sb3.Saved) -> tuple[str, ...]:
    try:
        return sb3.policy(saved, sb3.spec_of(saved), None)[1]
    except InputError as error:
        return (f"not rebuilt without an environment: {error}",)


def _zip_names(file: _File) -> dict[str, tuple[str, ...]]:
    """What the pickles inside a zip, and inside the zips in it, would import."""
    found: dict[str, tuple[str, ...]] = {}
    archives = [("", Archive(file.content, file.name))]
    while archives:
        prefix, archive = archives.pop()
        for member in archive.members:
            content = archive.read(member) if member.endswith((".pkl", ".pth", ".pt")) else b""
            if is_zip(content) and prefix.count("/") < 2:
                archives.append((f"{prefix}{member}/", Archive(content, member)))
            elif content:
                found[f"{prefix}{member}"] = inert.names_in(content)
    return found
