"""The verbs of what ships: artefacts, their checks and timings, live play, the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.verbs.telling import say

if TYPE_CHECKING:
    from limbeck.contracts import Artifact
    from limbeck.standalone.benching import Bench
    from limbeck.standalone.playing import Played


def export(
    run: str | Path,
    members: Sequence[str] = ("smallest",),
    to: Sequence[str] = ("onnx", "c"),
    *,
    env: str | None = None,
    out: str | Path | None = None,
) -> Sequence[Artifact]:
    """Export members of a run, or one policy file, to one or more targets.

    Args:
        run: A run folder or a policy file.
        members: Names of members, smallest (the smallest proved one), or all.
        to: Targets: c, wasm, onnx, onnx15 (Unity), onnx_int8 (lossy), python (one file), safetensors, numpy, sb3.
        env: Environment whose states the check replays. Default: the run's, or the one that the file names.
        out: Folder. Default: artifacts/ in the run, or beside the file.
    """
    from limbeck import standalone

    return standalone.export(Path(run), members, to, None if out is None else Path(out), env)


def check(folder: str | Path, *, env: str | None = None, episodes: int = 2) -> Any:
    """Check an artefact folder: checksums, then every backend present, against the golden sequences and in closed loop.

    C files are compiled and run, zips of Stable-Baselines3 unpickled: check only folders that you trust.

    Args:
        folder: An artefact folder, or a run folder (all its artefacts).
        env: Environment that every backend plays. Default: the run's, or the one that the artefact names.
        episodes: Episodes of each backend on fixed seeds; 0 for none.
    """
    from limbeck import standalone

    return standalone.check(Path(folder), env, episodes)


def bench(folder: str | Path, *, budget: str = "1ms") -> Bench:
    """Time one step of an artefact in every runtime here, against a budget and beside torch, ONNX Runtime and SB3.

    C files are compiled and run: give only folders that you trust.

    Fails where one call in a hundred of a backend takes longer than the budget.

    Args:
        folder: An artefact folder, or a run folder (all its artefacts).
        budget: Time of one step, such as 250us, 1ms, 0.5s.
    """
    from limbeck import standalone

    return standalone.bench(Path(folder), budget)


def play(
    folder: str,
    *,
    env: str | None = None,
    seed: int = 0,
    port: int = 0,
    out: str | Path | None = None,
) -> Played:
    """Watch an exported student play live in the browser: its WebAssembly takes the actions in the page. Ctrl-C ends.

    The environment is stepped here and streamed; CartPole runs in the page, which then needs no server.

    Only this machine can open the address. The run's recipe may import modules.

    Args:
        folder: An artefact folder that holds wasm, or RUN:MEMBER. Of a run alone: the smallest proved member.
        env: Gymnasium id, or package.module:EnvId. Default: the run's, or the one that the artefact names.
        seed: Seed of the first episode.
        port: Port of 127.0.0.1. Default: any free one.
        out: Write CartPole's page to this file, for use without a server, and stop.
    """
    from limbeck import standalone

    return standalone.play(folder, env, seed, port, None if out is None else Path(out), say)


def report(run: str | Path, to: Sequence[str] = ()) -> Path:
    """Write a run's report.html and model cards again and return the page's path.

    Args:
        run: The run folder.
        to: Also write it for tensorboard, wandb (offline) or mlflow, into the run's tracking/.
    """
    from limbeck import standalone

    return standalone.report(Path(run), to, say)
