"""Programs: TorchScript archives and `.pt2` files of torch.export. Calling one runs whatever it holds.

Refused, with how to save weights instead. Only where the user names exactly this file by its SHA-256 does it run, and
then in a confined process (`teachers.confined`); the teacher's notes say so, and with them the report.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from limbeck import spaces, tasks
from limbeck.contracts import Array, Observation, Spec, Teacher, TeacherInfo, View
from limbeck.errors import InputError, UnsafeError, printable
from limbeck.teachers import hidden, modules
from limbeck.teachers.archive import Archive, is_zip, listed
from limbeck.teachers.confined import Confined, Kind
from limbeck.teachers.files import File, Given, info

SUFFIXES = (".pt", ".pt2", ".ts", ".pth")
_NAMES: dict[Kind, str] = {"scripted": "TorchScript", "exported": "torch.export"}
_WEIGHTS: dict[Kind, str] = {
    "scripted": "safetensors.torch.save_file(dict(module.state_dict()), 'weights.safetensors')",
    "exported": "safetensors.torch.save_file(dict(exported.state_dict), 'weights.safetensors')",
}
_OUTSIDE = ("from_file", "save", "load", "open", "system", "import_ir_module", "load_library")
MAX_CODE = 4 * 2**20  # bytes of program text that inspect reads


def recognises(file: File) -> bool:
    return file.archive is not None and kind_of(file.archive) is not None


def kind_of(archive: Archive) -> Kind | None:
    """Which kind of program a zip is, None for what holds weights alone."""
    inner = [member.partition("/")[2] for member in archive.members]
    if "serialized_exported_program.json" in archive.members or any(
        name == "archive_format" or re.fullmatch(r"models/[^/]+\.json|data/(sample_inputs|aotinductor)/.*", name)
        for name in inner
    ):
        return "exported"
    if any(name.startswith("code/") or name in ("constants.pkl", "bytecode.pkl") for name in inner):
        return "scripted"
    return None


def load(file: File, given: Given) -> Teacher:
    given.refuse(file, "normaliser", "architecture")
    kind = _kind(file)
    if given.trust is None:
        raise _refused(file, kind)
    if given.trust != file.sha256:
        raise UnsafeError(
            f"--trust {printable(given.trust)} is not the SHA-256 of {printable(file.name)}, which is {file.sha256}. Nothing was run. "
            "Allowed: the digest of exactly the file that you trust."
        )
    spec = given.needs_spec(file)
    compiled = [member for member in file.members if member.endswith((".so", ".pyd", ".dylib"))]
    if compiled:
        raise UnsafeError(
            f"{printable(file.name)} holds compiled code ({printable(compiled[0], 80)}), which cannot be confined. Allowed: {_WEIGHTS[kind]} where it was made."
        )
    program = Confined(file.content, kind, file.name)
    note = f"a {_NAMES[kind]} program answers, confined in a process of its own, because --trust named its SHA-256"
    about = info(file, "program", _NAMES[kind], {"ran_code": True, "trusted_sha256": given.trust}, (), (note,))
    return modules.from_function(Asked(program, spec, given.view), spec, given.kind, about)


def inspect(file: File) -> TeacherInfo:
    kind = _kind(file)
    archive = file.archive
    assert archive is not None
    weights = sum(archive.size(m) for m in archive.members if re.search(r"/data/(\d+|weights/weight_\d+)$", m))
    facts: dict[str, object] = {"weight_bytes": weights, "members": len(archive.members)}
    notes: tuple[str, ...] = (str(_refused(file, kind)),)
    if kind == "scripted":
        operators = _operators(archive)
        facts["operators"] = operators
        outside = [name for name in operators if name.rsplit(".", 1)[-1] in _OUTSIDE]
        if outside:
            notes += (f"its code reaches for files: {', '.join(outside)}",)
    else:
        notes += _pickled_weights(archive)
    return info(file, "program", _NAMES[kind], facts, (file.name,), notes)


def _pickled_weights(archive: Archive) -> tuple[str, ...]:
    """Notes on weights and constants that are pickles: their names end in a number, so nobody expects one there."""
    notes = []
    for member in archive.members:
        if re.search(r"/data/(weights|constants)/[^/.]+$", member):
            content = archive.read(member)
            if is_zip(content) or content[:1] == b"\x80":
                names = [n for found in hidden.code_in(File(Path(member), content)).values() for n in found]
                notes.append(f"{printable(member, 80)} is a pickle, which would use {listed(tuple(names))}")
    return tuple(notes)


def _kind(file: File) -> Kind:
    kind = kind_of(file.archive) if file.archive is not None else None
    if kind is None:
        raise InputError(f"{printable(file.name)} is no TorchScript and no .pt2. Give it to the format that it has.")
    return kind


def _refused(file: File, kind: Kind) -> UnsafeError:
    return UnsafeError(
        f"{printable(file.name)} is a {_NAMES[kind]} program: using it means running its code. Refused, nothing was run. "
        f"Allowed: weights, saved where it was made: {_WEIGHTS[kind]}; or this very file, confined, with --trust and its SHA-256."
    )


def _operators(archive: Archive) -> list[str]:
    """The torch operators that a TorchScript archive's text names."""
    found: set[str] = set()
    read = 0
    for member in archive.members:
        if "/code/" in member and member.endswith(".py") and (read := read + archive.size(member)) <= MAX_CODE:
            text = archive.read(member).decode("utf-8", "replace")
            found |= set(re.findall(r"\b((?:torch|ops\.\w+)\.[a-z_]\w*)\(", text))
    return sorted(printable(name, 60) for name in found)[:100]


# ---------------------------------------------------------------- asking


class Asked:
    """A confined program as a function of the task's observation, which it gets as a torch module does: float32 arrays
    [B, ...], one-hot where discrete, a dict for Dict spaces; or, with a view, as flat rows [B, O]."""

    def __init__(self, program: Confined, spec: Spec, view: View | None) -> None:
        self.program, self._space, self._view = program, spec.observation_space, view
        self._one_by_one = False
        batch = modules.trial_batch(spec)
        try:
            self(batch)
        except InputError as error:
            self._one_by_one = True  # traced or exported for a batch of one
            try:
                self(batch)
            except InputError:
                raise error from None

    def __call__(self, obs: Observation) -> Any:
        fed = self._fed(obs)
        if not self._one_by_one:
            return self.program(fed)
        count = len(fed if isinstance(fed, np.ndarray) else next(iter(fed.values())))
        answers = [self.program(tasks.take_rows(fed, slice(i, i + 1))) for i in range(count)]
        if isinstance(answers[0], tuple):
            return tuple(np.concatenate(parts) for parts in zip(*answers, strict=True))
        return np.concatenate(answers)

    def _fed(self, obs: Observation) -> Observation:
        if self._view is not None:
            return spaces.flatten(obs, self._space, self._view)
        return numbers(obs, self._space)


def numbers(obs: Observation, space: gym.Space[Any]) -> Observation:
    """float32 arrays as a module gets them."""
    if isinstance(obs, Mapping) and isinstance(space, gym.spaces.Dict):
        return {key: _numbers(np.asarray(obs[key]), part) for key, part in space.spaces.items()}
    return _numbers(np.asarray(obs), space)


def _numbers(values: Array, space: gym.Space[Any]) -> Array:
    if not isinstance(space, (gym.spaces.Box, gym.spaces.MultiBinary)):
        values = spaces.flatten(values, space)
    return np.asarray(values, np.float32)
