"""Find, verify and play what `limbeck export` wrote."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from limbeck_runtime._limbeck import blueprints, distributions, spaces
from limbeck_runtime._limbeck.contracts import Policy as BatchPolicy
from limbeck_runtime._limbeck.contracts import Spec
from limbeck_runtime._limbeck.errors import InputError, missing_library, printable, unknown
from limbeck_runtime._limbeck.exporters import contract as contracts
from limbeck_runtime._limbeck.exporters import replaying
from limbeck_runtime._limbeck.exporters.contract import Contract
from limbeck_runtime._limbeck.runtimes import compiled_c, onnx_session, python_file, wasm
from limbeck_runtime._limbeck.runtimes.numpy import NumpyPolicy


class Policy:
    """A policy for one robot: `reset()` at every episode's start, then `step(obs)` for each observation."""

    def __init__(self, policy: BatchPolicy, target: str) -> None:
        self.batched, self.target = policy, target  # `batched` takes [B, ...] observations, its memory and first flags
        self.reset()

    @property
    def spec(self) -> Spec:
        """Observation and action space, and the task's name."""
        return self.batched.spec

    def reset(self) -> None:
        """Forget: call it before the first observation of every episode."""
        self._state, self._first = self.batched.initial_state(1), np.ones(1, bool)

    def step(self, obs: Any) -> Any:
        """The action for one observation (an array, a number, or a dict of them), as the environment wants it.

        An int for one choice, else an array of the action space's own number type, inside its bounds. Raises
        InputError for observations of another shape.
        """
        try:
            rows = (
                {k: np.asarray(v)[None] for k, v in obs.items()} if isinstance(obs, Mapping) else np.asarray(obs)[None]
            )
            output = self.batched(rows, self._state, self._first)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise InputError(
                f"the observation does not fit {self.spec.observation_space}: {type(error).__name__} {printable(error)}."
            ) from error
        self._state, self._first = output.state, np.zeros(1, bool)
        action = output.action if output.action is not None else distributions.act(self.batched.head, output.params)
        received = spaces.as_received(action, self.spec.action_space)[0]
        return int(received) if received.ndim == 0 and self.batched.head.discrete else received


@dataclass(frozen=True)
class CheckRow:
    """One target held against the golden rows."""

    target: str
    ok: bool | None  # None: not run here
    worst_error: float
    actions_equal: float  # share of rows
    note: str = ""


# ---------------------------------------------------------------- targets


@dataclass(frozen=True)
class _Target:
    missing: Callable[[], str]  # what this machine lacks, in words; empty when nothing
    load: Callable[[Path, Contract], BatchPolicy]


def _arrays(folder: Path, contract: Contract) -> BatchPolicy:
    return NumpyPolicy(blueprints.load(folder / "policy.safetensors")[0])


def _onnx(folder: Path, contract: Contract) -> BatchPolicy:
    path = folder / "policy.onnx"
    if not find_spec("onnxruntime"):
        raise missing_library("onnxruntime", "onnx", "playing an ONNX file")
    if not path.is_file():
        raise InputError(f"no file at {printable(path)}. Export the policy again.")
    run = onnx_session.session(path.read_bytes(), path.name)
    return onnx_session.OnnxPolicy(run, contract.spec, contract.head, contract.view)


def _without_onnxruntime() -> str:
    return "" if find_spec("onnxruntime") else 'onnxruntime is not installed; run: pip install "limbeck-runtime[onnx]"'


def _without_compiler() -> str:
    return "" if compiled_c.find_compiler() else "no C compiler (cc, gcc or clang)"


def _c(folder: Path, contract: Contract) -> BatchPolicy:
    return compiled_c.load(folder, contract.spec, contract.head, contract.view)


def _wasm(folder: Path, contract: Contract) -> BatchPolicy:
    loader = folder / "policy.mjs"
    return wasm.load(folder / "policy.wasm", loader, contract.spec, contract.head, contract.view, "wasmtime")


def _python(folder: Path, contract: Contract) -> BatchPolicy:
    return python_file.load(folder / "policy.py", contract.spec, contract.head)


_TARGETS: Mapping[str, _Target] = {  # in the order of preference: what needs nothing first
    "numpy": _Target(str, _arrays),
    "safetensors": _Target(str, _arrays),
    "python": _Target(str, _python),
    "c": _Target(_without_compiler, _c),
    "onnx": _Target(_without_onnxruntime, _onnx),
    "onnx15": _Target(_without_onnxruntime, _onnx),
    "wasm": _Target(lambda: wasm.missing("wasmtime"), _wasm),
    "onnx_int8": _Target(_without_onnxruntime, _onnx),
}


# ---------------------------------------------------------------- the verbs


def load(path: str | Path, target: str | None = None) -> Policy:
    """The policy of an artefact folder, or of one file in it, or of a policy.safetensors anywhere.

    `target` names what plays: numpy, safetensors, python, c, onnx, onnx15, onnx_int8 or wasm; without it the first of
    these that the folder has and this machine can run. Raises StorageError for changed files, InputError for unknown targets and what a
    target lacks here. C and Python files are code: load only what comes from people you trust.
    """
    path = Path(path)
    if path.is_file():
        folder = path.parent.parent
        if not (folder / contracts.CONTRACT).is_file() and path.suffix == ".safetensors":
            return Policy(NumpyPolicy(blueprints.load(path)[0]), "safetensors")
        path, target = folder, target or path.parent.name
    contract = contracts.intact(path)
    name = target or _preferred(contract)
    if name not in contract.targets or name not in _TARGETS:
        raise unknown("target", name, [t for t in contract.targets if t in _TARGETS])
    if missing := _TARGETS[name].missing():
        raise InputError(f"target {name} cannot run here: {missing}.")
    return Policy(_TARGETS[name].load(path / name, contract), name)


def check(folder: str | Path) -> list[CheckRow]:
    """Checksums first (StorageError names a changed file), then every target that can run here against the golden rows.

    A target that breaks fails its own row and no other.
    """
    folder = Path(folder)
    contract = contracts.intact(folder)
    golden = replaying.load(folder / replaying.FILE)
    return [_checked(folder, name, contract, golden) for name in contract.targets]


def _checked(folder: Path, name: str, contract: Contract, golden: replaying.Golden) -> CheckRow:
    missing = _TARGETS[name].missing() if name in _TARGETS else "limbeck-runtime does not play it; use limbeck check"
    if missing:
        return CheckRow(name, None, 0.0, 0.0, f"not run: {missing}")
    try:
        result, note = replaying.replayed(golden, name, _TARGETS[name].load(folder / name, contract), folder / name)
    except InputError as error:
        return CheckRow(name, False, math.inf, 0.0, str(error))
    return CheckRow(name, result.ok, result.worst_error, result.actions_equal, note)


def _preferred(contract: Contract) -> str:
    exact = [name for name in _TARGETS if name in contract.targets and name not in replaying.LOSSY]
    able = [name for name in exact if not _TARGETS[name].missing()]
    if not able:
        reasons = "; ".join(f"{name}: {_TARGETS[name].missing()}" for name in exact) or "it has none of them"
        raise InputError(
            f"none of {', '.join(_TARGETS)} can play the folder here ({reasons}). Install one, or name one."
        )
    return able[0]
