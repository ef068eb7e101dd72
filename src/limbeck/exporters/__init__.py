"""Write a policy for its targets, and prove that each file says what the policy says.

A target is a file of this folder with `export(blueprint, folder) -> Artifact`, `load(folder, contract) -> Policy` and
`missing() -> str`; its name is the file's. Names are listed without importing, so a missing library hurts only its user.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

from limbeck import storage
from limbeck.contracts import Artifact, Blueprint, Policy
from limbeck.errors import InputError, printable, unknown
from limbeck.exporters import contract as contracts
from limbeck.exporters import golden as goldens
from limbeck.exporters import replaying
from limbeck.runtimes.firmware import DoesNotFit

_PARTS = {"__init__", "contract", "golden", "replaying"}  # files here that are no targets
NOT_RUN = "not run: "  # begins the note of a backend that this machine cannot run
_TEXT = {"c"}  # targets that are written all the same where what runs them is missing


@dataclass(frozen=True)
class Backend:
    """One way to run a target's files: a compiler, an emulator, a virtual machine."""

    name: str  # "gcc", "clang", "cortex-m0", "node": unique within the target
    missing: str  # what this machine lacks and the package that has it; empty when nothing
    load: Callable[[], Policy]


class Target(Protocol):
    """What a target's file provides. `backends` is optional: without it the target runs in one way, `load`.

    Targets in `replaying.LOSSY` act differently from their policy: they provide `export_from(blueprint, folder, golden)`
    in place of `export`, are held against their own answers, and say how far those are from the policy's. Also optional:
    `unfit(blueprint)`, why a policy cannot be written for the target, in words; empty where it can.
    """

    def export(self, blueprint: Blueprint, folder: Path) -> Artifact: ...

    def load(self, folder: Path, contract: contracts.Contract) -> Policy: ...

    def missing(self) -> str:
        """What this machine lacks to run the target, in words; empty when nothing."""
        ...

    def backends(self, folder: Path, contract: contracts.Contract) -> Sequence[Backend]:
        """All ways to run it, the one of `load` first."""
        ...


@dataclass(frozen=True)
class CheckRow:
    """One backend of a target held against the golden rows."""

    target: str
    backend: str
    ok: bool | None  # None: not run here
    worst_error: float
    actions_equal: float  # share of rows
    note: str = ""


def targets() -> list[str]:
    """The names that `export` takes."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in _PARTS)


def missing(target: str) -> str:
    """What this machine lacks to run a target, in words; empty when nothing."""
    return _module(target).missing()


def unfit(target: str, blueprint: Blueprint) -> str:
    """Why a policy cannot be written for a target, in words; empty where it can."""
    module = _module(target)
    return str(module.unfit(blueprint)) if hasattr(module, "unfit") else ""


def require(names: Sequence[str]) -> None:
    """Raise InputError for targets that do not exist, or whose tools this machine lacks: before anything is played."""
    for name in names:
        if name not in targets():
            raise unknown("target", name, targets())
        if (lacking := missing(name)) and name not in _TEXT:
            raise InputError(
                f"target {name} cannot be made here: {lacking}. Install it, or choose other targets, such as c."
            )


def require_fit(blueprint: Blueprint, names: Sequence[str]) -> None:
    """Raise InputError for targets that cannot hold a policy."""
    contracts.check_exportable(blueprint)
    reasons = {name: why for name in names if (why := unfit(name, blueprint))}
    if reasons:
        told = "; ".join(f"{name} of policy {printable(blueprint.name)!r}: {why}" for name, why in reasons.items())
        fit = ", ".join(name for name in names if name not in reasons)
        drop = f" Drop {', '.join(reasons)} from the targets; {fit} can hold it." if fit else ""
        raise InputError(f"{told}.{drop}")


def export(
    blueprint: Blueprint,
    folder: Path,
    targets: Sequence[str],
    golden: goldens.Golden,
    meta: Mapping[str, Any] | None = None,
) -> list[Artifact]:
    """Write `folder`: <target>/..., contract.json, golden rows, card, checksums. Each target is replayed at once.

    Raises InputError where a file does not repeat the golden rows, a library of a target is absent or a target does not fit. The manifest is
    written last: a folder without one is no artefact.
    """
    modules = {name: _module(name) for name in dict.fromkeys(targets)}
    require_fit(blueprint, tuple(modules))
    (folder / storage.MANIFEST).unlink(missing_ok=True)
    artifacts = [_written(module, blueprint, folder / name, golden) for name, module in modules.items()]
    contracts.write(blueprint, folder, tuple(modules), meta or {})
    goldens.save(golden, folder / goldens.FILE, blueprint.spec, blueprint.view)
    replayed = [_replayed(artifact, folder, golden) for artifact in artifacts]
    storage.write_manifest(folder)
    return replayed


def load(folder: Path, target: str) -> Policy:
    """An exported file as a policy: it plays itself, not the student it came from."""
    contract = contracts.read(folder)
    if target not in contract.targets:
        raise unknown("target", target, contract.targets)
    return _module(target).load(folder / target, contract)


def check(folder: Path) -> list[CheckRow]:
    """Checksums first (StorageError names a changed file), then every target that can run here against the golden rows.

    A backend that breaks fails its own row and no other. C files are compiled and run: check only folders from people
    you trust.
    """
    contract = contracts.intact(folder)
    golden = goldens.load(folder / goldens.FILE)
    return [_checked(folder, name, backend, golden) for name in contract.targets for backend in backends(folder, name)]


def backends(folder: Path, target: str) -> Sequence[Backend]:
    """All ways to run a target of an artefact folder, able here or not."""
    contract, module = contracts.read(folder), _module(target)
    if hasattr(module, "backends"):
        return module.backends(folder / target, contract)
    return [Backend(target, module.missing(), partial(load, folder, target))]


def _written(module: Target, blueprint: Blueprint, folder: Path, golden: goldens.Golden) -> Artifact:
    if hasattr(module, "export_from"):
        return cast(Artifact, module.export_from(blueprint, folder, golden))
    return module.export(blueprint, folder)


def _checked(folder: Path, target: str, backend: Backend, golden: goldens.Golden) -> CheckRow:
    if backend.missing:
        return CheckRow(target, backend.name, None, 0.0, 0.0, f"{NOT_RUN}{backend.missing}")
    try:
        result, note = replaying.replayed(golden, target, backend.load(), folder / target)
    except DoesNotFit as error:  # an answer, not a failure: the policy is for larger parts
        return CheckRow(target, backend.name, None, 0.0, 0.0, str(error))
    except InputError as error:
        return CheckRow(target, backend.name, False, math.inf, 0.0, str(error))
    return CheckRow(target, backend.name, result.ok, result.worst_error, result.actions_equal, note)


def _replayed(artifact: Artifact, folder: Path, golden: goldens.Golden) -> Artifact:
    if not artifact.compiled:
        return artifact
    if artifact.target in replaying.LOSSY:
        policy = load(folder, artifact.target)
        own = replaying.write_own(golden, policy, folder / artifact.target)
        files = (*artifact.files, replaying.OWN)
        return replace(artifact, files=files, note=replaying.distance(golden, own, policy.head))
    result = goldens.compare(golden, load(folder, artifact.target))
    if not result.ok:
        raise InputError(
            f"the {artifact.target} file disagrees with its policy: error {result.worst_error:.2g}, same action in "
            f"{result.actions_equal:.1%} of {golden.rows} golden rows. Allowed: {goldens.TOLERANCE:g} and all. Use another target."
        )
    note = f"repeats {golden.rows} golden rows, worst error {result.worst_error:.1e}"
    return replace(artifact, note=f"{artifact.note}; {note}" if artifact.note else note)


def _module(name: str) -> Target:
    if name not in targets():
        raise unknown("target", name, targets())
    return cast(Target, importlib.import_module(f"limbeck.exporters.{name}"))
