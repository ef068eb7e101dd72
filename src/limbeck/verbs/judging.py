"""The verbs that judge: what a file is, what a student keeps, under which disturbances, and why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.assets import bundled
from limbeck.errors import InputError
from limbeck.verbs.telling import say

if TYPE_CHECKING:
    from limbeck.contracts import Proof, Stressed, TeacherInfo
    from limbeck.standalone.diagnosing import Diagnosis


def inspect(teacher: str | Path) -> TeacherInfo:
    """Say what a teacher file is, and what code it would run if it were unpickled; nothing in it is run.

    Args:
        teacher: The file.
    """
    from limbeck import teachers

    return teachers.inspect(bundled(teacher))


def prove(
    student: str,
    teacher: str | None = None,
    env: str | None = None,
    *,
    retain: float | None = None,
    alpha: float | None = None,
    seed: int | None = None,
    max_episodes: int | None = None,
    normaliser: str | None = None,
    plan: bool = False,
    superior: bool = False,
    target: str | None = None,
    out: str | Path | None = None,
    options: Sequence[str] = (),
) -> Proof | Mapping[str, Any]:
    """Prove that one policy keeps a share of another's return; a stored proof is continued, never restarted.

    For RUN:MEMBER what is not given is as the run had it.

    A claim that the run did not make stands alone, beside its sequence of tests.

    An artefact folder plays itself: its C is compiled and run, a run's recipe may import modules. Trust the folder.

    Args:
        student: A policy file, an artefact folder, or a run folder's member as RUN:MEMBER.
        teacher: A policy file; not needed for RUN:MEMBER.
        env: Gymnasium id; not needed for RUN:MEMBER.
        retain: Share r of the teacher's return over random play. Default: the run's, or .95.
        alpha: Error probability of the claim. Default: the member's share of the run's, or .05.
        seed: Seed of the proof's stream; another than the run's begins a proof of its own. Default: the run's, or 0.
        max_episodes: Give up after so many. Default: the run's, or 1000.
        normaliser: VecNormalize file of the teacher; not for RUN:MEMBER.
        plan: Say how many episodes to expect, after a small pilot, and stop.
        superior: Prove that the student is better than the teacher, as --retain 1 does.
        target: Of an artefact folder: whose file plays, such as c, onnx, wasm, python, numpy. Default: c, else the first that runs here.
        out: File of the proof. Default: proof.json in the current folder, or in the run.
        options: Other settings of the stage, such as prove.chunk=16.
    """
    from limbeck import standalone

    kept = None if out is None else Path(out)
    if superior and retain is not None:
        raise InputError("--superior was given with --retain, whose share it sets to 1. Give one of them.")
    asked = standalone.Asked(
        1.0 if superior else retain, alpha, seed, max_episodes, normaliser, kept, list(options), target
    )
    return standalone.prove(student, teacher, env, asked, plan, say)


def stress(
    student: str,
    teacher: str | None = None,
    env: str | None = None,
    *,
    episodes: int = 32,
    disturbances: Sequence[str] = (),
    seed: int | None = None,
) -> Sequence[Stressed]:
    """Play student and teacher side by side under noise, delay, sticky actions, dropped frames, other physics, attacks.

    Both meet the same seeds and the same draws. What is found is measured, not proved.

    Of a run the rows go into its result and its page; the same command continues where it was stopped.

    Args:
        student: A run folder, RUN:MEMBER, a policy file or an artefact folder. Of a run by default the smallest proved.
        teacher: A policy file; not needed for a run.
        env: Gymnasium id; not needed for a run.
        episodes: Episodes of each disturbance and level, for each of the two.
        disturbances: noise, delay, sticky, dropped, adversarial, gravity, mass, length, force, friction, wind. Default: all that apply.
        seed: Seed of episodes and draws. Default: the run's, or 0.
    """
    from limbeck import standalone

    return standalone.stress(student, teacher, env, episodes, tuple(disturbances), seed, say)


def diagnose(
    run: str,
    *,
    episodes: int | None = None,
    expect: float | None = None,
    seed: int | None = None,
) -> Diagnosis:
    """Say why a student of a run falls short: training, coverage, capacity, imitation gap or weak teacher.

    Fresh students are trained beside it, each with one remedy more; what each gains says what was missing.

    The run is only read; its recipe may import modules.

    Args:
        run: A run folder, or RUN:MEMBER. Default: the first member that is not proved.
        episodes: Episodes of each policy. Default: 40, fewer where they are long.
        expect: Return the teacher should reach. Default: the run's, or what the teacher or Gymnasium states.
        seed: Seed of the diagnosis. Default: the run's.
    """
    from limbeck import standalone

    return standalone.diagnose(run, episodes, expect, seed, say)
