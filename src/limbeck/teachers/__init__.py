"""Any trained policy as a Teacher: files by their content, hub ids, modules, callables. Nothing in a file is executed.

A file's format is one of `formats/`; objects and `package.module:attribute` are read by `modules`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from limbeck import recordings
from limbeck.assets import bundled
from limbeck.contracts import Blueprint, Policy, Spec, Teacher, TeacherInfo, View
from limbeck.errors import InputError, UnsafeError, printable
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.teachers import demonstrations, ensemble, files, formats, hidden, hub, joint, masking, modules, stated
from limbeck.teachers.files import File, Given
from limbeck.teachers.formats import limbeck_policy
from limbeck.teachers.sidecar import with_sidecar

__all__ = ["inspect", "load"]

One = str | os.PathLike[str] | Policy | Blueprint | Teacher | Callable[..., Any]
Source = One | Sequence[One]


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
    """A teacher from a file, a hub id, a module, a callable, a blueprint, a policy, or several of these, checked against
    the task's spaces.

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
    if isinstance(source, Teacher):
        return source
    loaded = _loaded(source, Given(spec, normaliser, kind, architecture, trust, view))
    return loaded if spec is None else masking.under_mask(loaded, spec)


def _loaded(source: Source, given: Given) -> Teacher:
    """The teacher as it is, without the task's mask."""
    spec = given.spec
    if isinstance(source, (list, tuple)) or ensemble.is_named(source):
        return _several(source, given)
    if spec is not None and spec.agents > 1 and not _for_all(source, spec):
        return joint.for_team(_loaded(source, replace(given, spec=joint.one_of(spec))), spec)
    if isinstance(given.normaliser, str) and hub.is_address(given.normaliser):
        given = replace(given, normaliser=hub.cached(given.normaliser))
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        if hub.is_address(text):
            fetched = hub.fetch(text)
            name, format_ = formats.of(fetched.file)
            teacher = format_.load(fetched.file, given)
            return replace(teacher, info=_fetched(_completed(teacher.info, fetched.file, name, format_), fetched))
        if recordings.looks_like(Path(text)):
            for option in ("normaliser", "kind", "architecture", "trust"):
                if getattr(given, option) is not None:
                    raise InputError(
                        f"--{option} was given for the recordings {printable(text)}, which are no network. Drop --{option}."
                    )
            return demonstrations.load(Path(text), spec)
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
    return _load_object(source, spec, given.kind)


def inspect(path: str | os.PathLike[str]) -> TeacherInfo:
    """What a teacher file is, states and hides. Runs nothing, needs no environment, refuses only what is unreadable."""
    if isinstance(path, str) and ensemble.is_named(path):
        fusion, members = ensemble.parse(path)
        infos = [inspect(bundled(member)) for member in members]
        return ensemble.about(infos, fusion, [info.sha256 for info in infos])
    if isinstance(path, str) and hub.is_address(path):
        fetched = hub.fetch(path)
        return _fetched(_inspected(fetched.file), fetched)
    if recordings.looks_like(Path(path)):
        return demonstrations.load(Path(path), None).info
    if _is_reference(os.fspath(path)) and not os.path.lexists(path):
        raise InputError(
            f"{printable(path)} is no file here, and Python objects are not inspected: that would run them. Allowed: a file, an hf:// address, ensemble:A,B."
        )
    return _inspected(files.read(Path(path)))


def _inspected(file: File) -> TeacherInfo:
    name, format_ = formats.of(file)
    try:
        found = format_.inspect(file)
    except UnsafeError as error:
        found = TeacherInfo(str(file.path), "program", "unknown", file.sha256, {}, (file.name,), (str(error),))
    code = {printable(k): tuple(map(printable, v)) for k, v in hidden.code_in(file).items() if v}
    return _completed(replace(found, stated={**found.stated, "code": code}), file, name, format_)


def _completed(info: TeacherInfo, file: File, name: str, format_: files.Format) -> TeacherInfo:
    """With the return that a sidecar states, and a note where the file's name says another format."""
    suffix = file.path.suffix.lower()
    note = f"its name ends in {printable(suffix) or 'nothing'}, its content is {name} (usually {format_.SUFFIXES[0]})"
    notes = info.notes if suffix in format_.SUFFIXES else (note, *info.notes)
    return with_sidecar(replace(info, notes=notes), file.path)


def _fetched(info: TeacherInfo, fetched: hub.Fetched) -> TeacherInfo:
    """With where on the Hub it came from."""
    return replace(info, path=fetched.pinned, stated={**info.stated, "hub": fetched.facts})


def _several(source: Any, given: Given) -> Teacher:
    """An ensemble, named or listed."""
    for option in ("normaliser", "kind", "architecture", "trust"):
        if getattr(given, option) is not None:
            raise InputError(
                f"a {option} was given for an ensemble: whose is open. In Python load each member with its own and pass the list."
            )
    fusion, members = ensemble.parse(source) if isinstance(source, str) else (ensemble.FUSIONS[0], source)
    loaded = [load(bundled(member), given.spec, view=given.view) for member in members]
    return ensemble.of(loaded, fusion)


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


def _for_all(source: Any, team: Spec) -> bool:
    """Whether a policy was made for the whole team: it says so itself."""
    own = source.spec if isinstance(source, (Blueprint, Policy)) else None
    if isinstance(source, (str, os.PathLike)) and Path(source).is_file():
        file = files.read(Path(source))
        name, _ = formats.of(file)
        own = limbeck_policy.spec_of(file) if name == "limbeck_policy" else None
    return own is not None and stated.shape_of(own.action_space) == stated.shape_of(team.action_space)


def _is_reference(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", text) is not None
