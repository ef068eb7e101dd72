"""A run as TensorBoard, Weights & Biases or MLflow shows it: a pure function of the run's files, written while it goes on.

One file per library, which alone imports it (W&B's in a process of its own). Everything lies in the run's folder tracking/
and nothing leaves the machine, unless WANDB_MODE or MLFLOW_TRACKING_URI say otherwise. `live` follows a run that goes on,
`track` writes a finished one; both feed the same `Feed` with the same lines in the same order.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from limbeck import storage
from limbeck.contracts import RunResult
from limbeck.errors import missing_library, unknown
from limbeck.reporting import words
from limbeck.reporting.reading import load_result

FOLDER = storage.TRACKING
TRACKERS = {  # name -> (file here, library)
    "tensorboard": ("tensorboard_file", "tensorboard"), "wandb": ("wandb_run", "wandb"), "mlflow": ("mlflow_store", "mlflow"),
}  # fmt: skip
STEPS = ("env_steps", "generation", "round")  # what a row of metrics is counted by, the first that it has
AGAIN = "The run itself is kept: when it is over and this is mended, limbeck report RUN --to NAME writes it there."
FILES = ("report.html", "README.md", "result.json", "recipe.yaml")  # kept with the run where a library keeps files


@dataclass(frozen=True)
class Point:
    """One number of a curve."""

    name: str  # "imitate/loss/mlp:8-s0"
    step: int
    value: float


Line = Sequence[Point]  # the numbers of one line of metrics.jsonl, all at one step of one stage; never empty


@dataclass(frozen=True)
class Log:
    """What is tracked of a run beside its curves, when it is over."""

    finals: Mapping[str, float]  # verdicts, sizes, latencies, bill
    texts: Mapping[str, str]  # headline, verdicts, command
    settings: Mapping[str, str]  # dotted keys of the run: task, teacher, versions
    files: Sequence[Path]


class Feed(Protocol):
    """A run that a library is given bit by bit."""

    place: str  # where it is, for people

    def add(self, lines: Sequence[Line]) -> None:
        """The next lines; who looks at the run sees them from now on."""
        ...

    def finish(self, log: Log) -> None:
        """What there is at the end; returns when all of it is kept."""
        ...

    def close(self) -> None:
        """Let go; of a run that was not finished, what was added stays."""
        ...


class Tracker(Protocol):
    """What each file here provides."""

    def begin(self, name: str, folder: Path) -> Feed:
        """A run of that name, kept below `folder`, in place of an earlier one there."""
        ...


def require(names: Sequence[str]) -> None:
    """Raise InputError for a tracker that is unknown or whose library is missing."""
    for name in names:
        if name not in TRACKERS:
            raise unknown("tracker", name, TRACKERS)
        library = TRACKERS[name][1]
        if importlib.util.find_spec(library) is None:
            raise missing_library(library, "track", f"tracking with {name}")


def track(run: Path, names: Sequence[str]) -> dict[str, str]:
    """Write a finished run for each tracker in place of what an earlier call wrote; name -> where it is, for people."""
    require(names)
    log, lines, places = log_of(run), lines_of(storage.read_metrics(run)), {}
    for name in dict.fromkeys(names):
        with closing(begin(run, name)) as feed:
            feed.add(lines)
            feed.finish(log)
        places[name] = feed.place
    return places


def begin(run: Path, name: str) -> Feed:
    """A run's feed of one tracker, with nothing in it yet."""
    folder = run / FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    tracker = cast(Tracker, importlib.import_module(f"{__name__}.{TRACKERS[name][0]}"))
    return tracker.begin(words.public(run.resolve().name, 100), folder)


def cleared(folder: Path) -> Path:
    """The folder without what an earlier call wrote into it."""
    shutil.rmtree(folder)
    folder.mkdir()
    return folder


def lines_of(rows: Iterable[object]) -> list[Line]:
    """What is tracked of lines of metrics.jsonl; those without a step or a number are left out.

    >>> lines_of([{"stage": "imitate", "round": 2, "loss": 0.5}, {"stage": "imitate", "loss": 1.0}])
    [[Point(name='imitate/loss', step=2, value=0.5)]]
    """
    found = [list(_points(row)) for row in rows if isinstance(row, dict)]
    return [line for line in found if line]


def log_of(run: Path) -> Log:
    """What is tracked of a finished run, but for its curves."""
    result = load_result(run)
    finals = {name: value for name, value in _finals(result) if math.isfinite(value)}
    verdicts = {f"verdict/{m.name}": f"{words.verdict(m)}: {m.proof.reason}" if m.proof else words.verdict(m) for m in result.members}  # fmt: skip
    texts = {"headline": words.headline(result), "command": result.command, **verdicts}
    settings = {
        "task": result.task, "mode": result.mode, "retain": f"{result.retain:g}", "alpha": f"{result.alpha:g}", "teacher": result.teacher.sha256,
        **{f"versions.{k}": str(v) for k, v in result.versions.items()},
    }  # fmt: skip
    files = [run / name for name in FILES if (run / name).is_file()]
    told = {words.public(k, 200): words.public(v, 2000) for k, v in texts.items()}
    return Log(finals, told, {k: words.public(v, 400) for k, v in settings.items()}, files)


def _points(row: Mapping[str, Any]) -> Iterator[Point]:
    """The numbers of one line of metrics.jsonl."""
    by = next((key for key in STEPS if isinstance(row.get(key), int)), None)
    if by is None or not isinstance(row.get("stage"), str):
        return
    member = f"/{words.public(row['member'], 100)}" if isinstance(row.get("member"), str) else ""
    for key, value in row.items():
        if key in STEPS or isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            continue
        yield Point(f"{words.public(row['stage'], 40)}/{words.public(key, 60)}{member}", row[by], float(value))


def _finals(result: RunResult) -> Iterator[tuple[str, float]]:
    for m in result.members:
        name = words.public(m.name, 100)
        yield f"member/parameters/{name}", float(m.parameters)
        yield f"member/size_bytes/{name}", float(m.size_bytes)
        yield f"member/multiply_adds/{name}", float(m.multiply_adds)
        for target, latency in m.latency.items():
            yield f"latency/p50_seconds/{words.public(target, 40)}/{name}", latency.p50_seconds
        if m.proof is not None:
            yield f"proof/retention/{name}", m.proof.retention
            yield f"proof/retention_low/{name}", m.proof.retention_low
            yield f"proof/return/{name}", words.mean_interval(m.proof.student_returns)[0]
            yield f"proof/episodes/{name}", float(m.proof.episodes)
            yield f"proof/proved/{name}", float(m.proof.verdict == "proved")
    for key, value in storage.plain(result.bill).items():
        if isinstance(value, (int, float)):
            yield f"bill/{key}", float(value)
    yield "bill/env_steps", float(result.bill.env_steps)
    for name, evaluation in result.evaluations.items():
        yield f"evaluation/{words.public(name, 40)}", evaluation.mean
