"""`limbeck bench`: one observation in, one action out, timed in every runtime of an artefact and in what it competes with.

A backend passes where 99 of 100 calls end within the budget. What it competes with (torch, ONNX Runtime, Stable-Baselines3,
numpy, the arithmetic floor) is timed beside it on this machine and passes nothing. Rounds alternate, so that a busy
machine slows nobody more than the others.
"""

from __future__ import annotations

import gc
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck import blueprints, exporters, spaces, tasks
from limbeck.contracts import Array, Blueprint, Policy, PolicyOutput
from limbeck.errors import InputError, printable
from limbeck.exporters import contract, replaying
from limbeck.runtimes import firmware, onnx_session, rivals
from limbeck.runtimes.compiled_c import CPolicy
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.standalone.folders import artifacts, weights

ROUNDS = 5
CALLS = 1000  # of one contestant in one round
MOST_NANOSECONDS = 200_000_000  # of one contestant in one round
FEWEST_CALLS = 10
WARM_UP = 20
EXPONENTS = {"us": -6, "ms": -3, "s": 0}

Step = Callable[[], object]


@dataclass(frozen=True)
class Timed:
    """Seconds of one call, or why there is none."""

    member: str
    name: str  # "c gcc", "onnx", "torch", ...
    p50_seconds: float = 0.0
    p99_seconds: float = 0.0
    max_seconds: float = 0.0
    calls: int = 0
    within: bool | None = None  # p99 within the budget; None: not a backend of the artefact, or not run
    note: str = ""

    @property
    def jitter_seconds(self) -> float:
        """How much longer the slowest call of a hundred takes than the middle one."""
        return self.p99_seconds - self.p50_seconds


@dataclass(frozen=True)
class Bench:
    """Everything that was timed, and the budget."""

    budget_seconds: float
    rows: tuple[Timed, ...]

    @property
    def ok(self) -> bool:
        return all(row.within is not False for row in self.rows)


def bench(folder: Path, budget: str) -> Bench:
    """Time the artefacts of a folder, or all of a run. C files are compiled and run: only folders that you trust.

    Raises InputError for changed files, a budget that is none, and a folder where no backend can run.
    """
    seconds = budget_of(budget)
    found, whole = artifacts(folder)
    rows = tuple(row for one in found for row in _timed(one, seconds, one.name if whole else ""))
    if not any(row.within is not None for row in rows):
        raise InputError(
            f"no backend of {printable(folder)} can run here. Install what `limbeck check` names, or export c."
        )
    return Bench(seconds, rows)


def budget_of(text: str) -> float:
    """Seconds of a budget.

    >>> budget_of("250us"), budget_of("1ms"), budget_of("0.5s")
    (0.00025, 0.001, 0.5)
    """
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(us|ms|s)", text.strip(), re.ASCII)
    if found is None or float(found[1]) == 0:
        raise InputError(
            f"budget {printable(text)!r} is none. Allowed: a positive number and us, ms or s, such as 250us, 1ms, 0.5s."
        )
    return float(f"{found[1]}e{EXPONENTS[found[2]]}")


# ---------------------------------------------------------------- contestants


def _timed(folder: Path, budget: float, member: str) -> list[Timed]:
    described = contract.intact(folder)
    golden = replaying.load(folder / replaying.FILE)
    flat = np.ascontiguousarray(spaces.input_rows(golden.obs, described.spec.observation_space, described.view))
    steps: dict[str, Step] = {}
    missing: list[Timed] = []
    for target in described.targets:
        for backend in exporters.backends(folder, target):
            name = target if backend.name == target else f"{target} {backend.name}"
            if backend.name in firmware.BOARDS:
                missing.append(Timed(member, name, note="emulated: limbeck check counts its instructions"))
            elif backend.missing:
                missing.append(Timed(member, name, note=backend.missing))
            else:
                try:
                    steps[name] = _step(backend.load(), golden, flat)
                except InputError as error:  # a broken compiler, say: this backend's fault and no other's
                    missing.append(Timed(member, name, within=False, note=str(error)))
    own = set(steps)
    others, notes = _rivals(folder, described, golden, flat, set(described.targets))
    rows = _measure(steps | others, budget, own, member)
    return [*rows, *missing, *(Timed(member, name, note=note) for name, note in notes.items())]


def _step(policy: Policy, golden: replaying.Golden, flat: Array) -> Step:
    """One call per call: the fast one where the runtime has one, flat rows where it takes them, else the observation."""
    turn = _turns(len(flat))
    if isinstance(policy, CPolicy):
        rows = list(flat)
        return lambda: policy.step(rows[turn()])
    call, given = _calls(policy, golden, flat)
    state, first = [policy.initial_state(1)], np.zeros(1, bool)
    state[0] = policy(tasks.take_rows(golden.obs, slice(0, 1)), state[0], np.ones(1, bool)).state

    def step() -> None:
        state[0] = call(given[turn()], state[0], first).state

    return step


def _calls(policy: Policy, golden: replaying.Golden, flat: Array) -> tuple[Callable[..., PolicyOutput], list[Any]]:
    """(what is called with an observation, a state and where episodes begin; the observations, one row each)."""
    rows: list[Any] = [tasks.take_rows(golden.obs, slice(i, i + 1)) for i in range(len(flat))]
    if isinstance(policy, NumpyPolicy):  # its flat rows are those behind the view, the mask beside them
        space, view, on_flat = policy.spec.observation_space, policy.blueprint.view, policy.on_flat
        if view.mask is None:
            return on_flat, [spaces.flatten(row, space, view) for row in rows]
        pairs = [(spaces.flatten(row, space, view), spaces.mask_of(row, view)) for row in rows]
        return lambda pair, state, first: on_flat(pair[0], state, first, pair[1]), pairs
    direct = getattr(policy, "on_flat", None)
    return (policy, rows) if direct is None else (direct, [flat[i : i + 1] for i in range(len(flat))])


def _turns(count: int) -> Callable[[], int]:
    """0, 1, ... count - 1, 0, ...: other observations hide what a processor remembers of one."""
    place = -1

    def turn() -> int:
        nonlocal place
        place = place + 1 if place + 1 < count else 0
        return place

    return turn


def _rivals(
    folder: Path, described: contract.Contract, golden: replaying.Golden, flat: Array, targets: set[str]
) -> tuple[dict[str, Step], dict[str, str]]:
    """The calls of what the artefact competes with, and in words why others are not there."""
    if (path := weights(folder, targets)) is None:
        word = "needs the weights: export numpy too, or give artifacts/MEMBER of a run"
        return {}, dict.fromkeys(("torch", "sb3 predict", "floor"), word)
    blueprint = blueprints.load(path)[0]
    steps: dict[str, Step] = {}
    notes: dict[str, str] = {}
    if "numpy" not in targets:
        steps["numpy"] = _step(NumpyPolicy(blueprint), golden, flat)
    if "onnx" not in targets:
        if reason := exporters.missing("onnx"):
            notes["onnxruntime"] = reason
        else:
            steps["onnxruntime"] = _step(_onnx(blueprint), golden, flat)
    turn, rows = _turns(len(flat)), list(flat)
    for name, make in (("torch", rivals.torch_call), ("sb3 predict", rivals.sb3_call)):
        made = make(blueprint)
        if isinstance(made, str):
            notes[name] = made
        else:
            steps[name] = _calling(made, rows, turn)
    floor = rivals.seconds_per_multiply_add()
    if floor is None:
        notes["floor"] = "no C compiler"
    else:
        notes["floor"] = (
            f"{blueprint.multiply_adds:,} multiply-adds take {_words(floor * blueprint.multiply_adds)} at this core's peak"
        )
    return steps, notes


def _calling(call: Callable[[Array], object], rows: Sequence[Array], turn: Callable[[], int]) -> Step:
    return lambda: call(rows[turn()])


def _onnx(blueprint: Blueprint) -> Policy:
    from limbeck.exporters import onnx

    with tempfile.TemporaryDirectory(prefix="limbeck-") as place:
        onnx.export(blueprint, Path(place))
        content = (Path(place) / "policy.onnx").read_bytes()
    run = onnx_session.session(content, "policy.onnx")
    return onnx_session.OnnxPolicy(run, blueprint.spec, blueprint.head, blueprint.view)


# ---------------------------------------------------------------- the clock


def _measure(steps: dict[str, Step], budget: float, own: set[str], member: str) -> list[Timed]:
    spent: dict[str, list[NDArray[np.int64]]] = {name: [] for name in steps}
    clock = float(np.median(_times(lambda: None)))
    collects = gc.isenabled()
    gc.disable()  # its pauses are the interpreter's, and would fall on whoever is timed when they come
    try:
        for step in steps.values():
            for _ in range(WARM_UP):
                step()
        for _ in range(ROUNDS):
            for name, step in steps.items():
                spent[name].append(_times(step))
    finally:
        if collects:
            gc.enable()
    rows = []
    for name, rounds in spent.items():
        every = np.maximum(np.concatenate(rounds) - clock, 0.0) * 1e-9
        p50, p99 = np.percentile(every, [50, 99])
        within = bool(p99 <= budget) if name in own else None
        rows.append(Timed(member, name, float(p50), float(p99), float(every.max()), len(every), within))
    return sorted(rows, key=lambda row: row.p50_seconds)


def _times(step: Step) -> NDArray[np.int64]:
    """Nanoseconds of each call of one round, the clock's own included."""
    spent: list[int] = []
    begin = perf_counter_ns()
    while len(spent) < CALLS and (len(spent) < FEWEST_CALLS or perf_counter_ns() - begin < MOST_NANOSECONDS):
        before = perf_counter_ns()
        step()
        spent.append(perf_counter_ns() - before)
    return np.array(spent)


def _words(seconds: float) -> str:
    """Seconds in the unit that fits them.

    >>> _words(4.2e-8), _words(3.1e-6), _words(0.002), _words(1.5)
    ('42 ns', '3.1 us', '2 ms', '1.5 s')
    """
    for unit, size in (("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3)):
        if seconds < 1000 * size * 0.9995:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


words = _words
