"""A teacher file in hand, and what its user said about it."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

from limbeck.contracts import Blueprint, Spec, Teacher, TeacherInfo, View
from limbeck.errors import InputError, printable
from limbeck.runtimes.numpy import NumpyPolicy, layer_shapes
from limbeck.teachers.archive import Archive, is_zip

MAX_FILE = 1024 * 2**20


@dataclass(frozen=True)
class File:
    """A file read once: what was hashed is what is used."""

    path: Path
    content: bytes

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def archive(self) -> Archive | None:
        """The zip's members, None where the content is no zip. Raises InputError for a damaged or hostile one."""
        return Archive(self.content, self.name) if is_zip(self.content) else None

    @property
    def members(self) -> tuple[str, ...]:
        return self.archive.members if self.archive is not None else ()


@dataclass(frozen=True)
class Given:
    """What the user said beside the file. A format refuses what it has no use for, by `refuse`."""

    spec: Spec | None = None  # of the task; None: the file's own statement, if it makes one
    normaliser: str | os.PathLike[str] | None = None  # file of VecNormalize statistics
    kind: str | None = None  # how to read the output: q, categorical, gaussian, probabilities ...
    architecture: str | None = None  # of weights that do not say how to compute with them
    trust: str | None = None  # SHA-256 of a program that may run
    view: View | None = None  # what of the task's observation the teacher sees; None: found out

    def refuse(self, file: File, *options: str) -> None:
        """Raise InputError for options that do not go with this file."""
        why = {
            "normaliser": "its normaliser is inside",
            "kind": "it says itself what it is",
            "architecture": "it says itself what it computes",
            "trust": "it runs no code",
        }
        for option in options:
            if getattr(self, option) is not None:
                raise InputError(
                    f"--{option} was given for {printable(file.name)}, but {why[option]}. Drop --{option}."
                )

    def needs_spec(self, file: File) -> Spec:
        """The task's spaces, or an InputError that asks for them."""
        if self.spec is None:
            raise InputError(f"{printable(file.name)} does not state its spaces. Name the environment with --env.")
        return self.spec


class Format(Protocol):
    """What a file of `formats/` provides. `recognises` looks at the content alone and is true for one format only."""

    SUFFIXES: tuple[str, ...]  # usual ones, the first of them told to users

    def recognises(self, file: File) -> bool: ...

    def load(self, file: File, given: Given) -> Teacher:
        """Raises InputError for damage and what does not fit, UnsafeError for programs; runs nothing from the file."""
        ...

    def inspect(self, file: File) -> TeacherInfo:
        """What the file is, states and hides; needs no environment."""
        ...


def read(path: Path) -> File:
    """The whole file, once. Raises InputError where there is none."""
    shown = printable(path)
    try:
        with open(path, "rb", opener=_no_waiting) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE:
                raise InputError(f"{shown} is no regular file of at most {MAX_FILE >> 20} MiB. Give a teacher file.")
            content = stream.read(status.st_size + 1)  # not MAX_FILE: that many bytes would be set aside
    except IsADirectoryError as error:
        raise InputError(f"{shown} is a folder. Give the teacher file inside it.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"no teacher at {shown}: {printable(reason)}. Give an existing file, or package.module:attribute."
        ) from error
    if not content:
        raise InputError(f"{shown} is empty. Copy or save the teacher again.")
    return File(path, content)


def _no_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a named pipe without a writer would block for ever


def info(
    file: File, format_: str, algorithm: str, facts: dict[str, object], unread: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> TeacherInfo:  # fmt: skip
    """The record of what a file is; the registry adds notes about its name and the return its sidecar states."""
    return TeacherInfo(str(file.path), format_, printable(algorithm, 60), file.sha256, facts, unread, notes)


def shape_facts(drawn: Blueprint) -> dict[str, object]:
    """What a reader wants to know of a rebuilt policy."""
    layers = ", ".join(f"{layer.kind} {layer.inputs}x{layer.outputs}" for layer in drawn.layers)
    return {
        "parameters": drawn.parameters, "head": drawn.head.kind, "layers": layers,
        "normaliser": drawn.normaliser is not None, "features": ", ".join(layer_shapes(drawn.layers)),
    }  # fmt: skip


def rebuilt(drawn: Blueprint, about: TeacherInfo) -> Teacher:
    """A teacher that is a blueprint, its shape among the facts."""
    return Teacher(NumpyPolicy(drawn), replace(about, stated={**shape_facts(drawn), **about.stated}), drawn)
