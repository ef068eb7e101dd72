"""Any trained policy as a Teacher: files by their content, hub ids, modules, callables. Nothing in a file is executed.

A file's format is one of `formats/`; objects and `package.module:attribute` are read by `modules`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from limbeck.contracts import Blueprint, Policy, Spec, Teacher, TeacherInfo, View
from limbeck.errors import InputError, UnsafeError, printable
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.teachers import files, formats, hidden, modules, stated
from limbeck.teachers.files import File, Given
from limbeck.teachers.sidecar import with_sidecar

__all__ = ["inspect", "load"]

Source = str | os.PathLike[str] | Policy | Blueprint | Teacher | Callable[..., Any]


def load(
    source: Source,
    spec: Spec | None = None,
    *,
    normaliser: str | os.PathLike[str] | None = None,
    kind: str | None = None,
    architecture: str | None = None,
    trust: str | None = None,
    view: View | None = None,
) -> Teacher:
    """A teacher from a file, a hub id, a module, a callable, a blueprint or a policy, checked against the task's spaces.

    Args:
        source: What the teacher is.
        spec: The task's spaces; None: those that the file states.
        normaliser: A VecNormalize file; None: one beside the teacher, if there is one.
        kind: How to read the output of a module, a callable or an ONNX file.
        architecture: The network of weights that do not say how to compute with them.
        trust: SHA-256 of a TorchScript or .pt2 file that may run, confined.
        view: What of the task's observation the teacher sees; None: found from its own spaces.

    Raises InputError for what is damaged or does not fit, UnsafeError for programs.
    """
    given = Given(spec, normaliser, kind, architecture, trust, view)
    if isinstance(source, Teacher):
        return source
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        if not (_is_reference(text) and not os.path.lexists(text)):
            file = files.read(Path(text))
            name, format_ = formats.of(file)
            teacher = format_.load(file, given)
            return replace(teacher, info=_completed(teacher.info, file, name, format_))
        source = modules.imported(text)
    for option in ("normaliser", "architecture", "trust"):
        if getattr(given, option) is not None:
            raise InputError(
                f"a {option} was given for a teacher that is no file. Allowed: put it inside the module or the callable."
            )
    return _load_object(source, spec, kind)


def inspect(path: str | os.PathLike[str]) -> TeacherInfo:
    """What a teacher file is, states and hides. Runs nothing, needs no environment, refuses only what is unreadable."""
    file = files.read(Path(path))
    name, format_ = formats.of(file)
    try:
        found = format_.inspect(file)
    except UnsafeError as error:
        found = TeacherInfo(str(path), "program", "unknown", file.sha256, {}, (file.name,), (str(error),))
    code = {printable(k): tuple(map(printable, v)) for k, v in hidden.code_in(file).items() if v}
    return _completed(replace(found, stated={**found.stated, "code": code}), file, name, format_)


def _completed(info: TeacherInfo, file: File, name: str, format_: files.Format) -> TeacherInfo:
    """With the return that a sidecar states, and a note where the file's name says another format."""
    suffix = file.path.suffix.lower()
    note = f"its name ends in {printable(suffix) or 'nothing'}, its content is {name} (usually {format_.SUFFIXES[0]})"
    notes = info.notes if suffix in format_.SUFFIXES else (note, *info.notes)
    return with_sidecar(replace(info, notes=notes), file.path)


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
