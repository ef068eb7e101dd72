"""The verbs that make something new: runs, searches, teachers, recordings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.assets import PREFIX
from limbeck.verbs.telling import say

if TYPE_CHECKING:
    from limbeck.contracts import RunResult
    from limbeck.recordings import Recordings
    from limbeck.scale.fronts import SearchResult


def distill(
    teacher: Any,
    env: Any = None,
    students: Sequence[str] | None = None,
    out: str | Path | None = None,
    *,
    data: str | Path | None = None,
    seed: int | None = None,
    env_steps: int | None = None,
    seconds: float | None = None,
    retain: float | None = None,
    normaliser: str | None = None,
    kind: str | None = None,
    architecture: str | None = None,
    trust: str | None = None,
    expect: float | None = None,
    accept_teacher: bool = False,
    history: int | None = None,
    keys: Sequence[str] | None = None,
    indices: Sequence[int] | None = None,
    options: Sequence[str] = (),
) -> RunResult:
    """Distill a teacher into a family of students, prove what each keeps, export them, write a report.

    The same command continues a run that was stopped. A recipe may name modules, which are imported.

    Args:
        teacher: File (see limbeck inspect), hf://ORG/REPO:FILE, ensemble:A,B, bundled:ppo-lunar, package.module:callable, or recipe.yaml.
        env: Gymnasium id, package.module:EnvId, or digits.
        students: Members, such as mlp:64x64 mlp:16x16@4 linear; @4 means four seeds.
        out: Run folder. Default: runs/ENV-TEACHER.
        data: Recordings to imitate on where there is no environment: .npz or a Minari folder.
        seed: Seed of everything. Default 0.
        env_steps: Budget of collection steps.
        seconds: Budget of imitation in seconds; becomes a recorded number of rounds.
        retain: Share of the teacher to prove, .95 by default.
        normaliser: VecNormalize file of the teacher; one beside it is found by itself.
        kind: What the teacher's output is, where it does not say: q, categorical, gaussian ...
        architecture: Network of bare weights, such as "dense 64 tanh > head categorical @pi".
        trust: SHA-256 of a TorchScript or .pt2 teacher that may run, confined.
        expect: Return the teacher should reach.
        accept_teacher: Distill the teacher whatever its return is.
        history: Frames a memoryless student sees.
        keys: Entries of a Dict observation the student sees.
        indices: Positions of the flat observation the student sees.
        options: Any other setting as STAGE.KEY=VALUE, such as collect.slots=8.

    Returns:
        The run's result, as stored in result.json.

    Raises:
        InputError: wrong file, names or values; a teacher that is not what it should be.
        UnsafeError: a file that would have to run code to load.
        StorageError: full disk, read-only folder, folder in use or made by another recipe.
        EnvironmentFault: the environment raised, hung or returned numbers that are not finite.
    """
    from limbeck import pipeline
    from limbeck.settings import OBJECT

    given: dict[str, Any] = {}
    if isinstance(teacher, (str, Path)) and str(teacher).endswith((".yaml", ".yml")):
        from limbeck import recipes

        given, teacher = recipes.read(Path(teacher)), None
    else:
        given["teacher"] = teacher if isinstance(teacher, (str, Path)) else f"{OBJECT}{type(teacher).__name__}"
    if isinstance(given.get("teacher"), Path):
        given["teacher"] = str(given["teacher"])
    values: dict[str, Any] = {"env": env if isinstance(env, str) or env is None else f"{OBJECT}{type(env).__name__}", "students": students,
                              "seed": seed, "env_steps": env_steps, "seconds": seconds, "normaliser": normaliser, "history": history,
                              "keys": keys, "indices": indices, "data": None if data is None else str(data), "kind": kind,
                              "architecture": architecture, "trust": trust}  # fmt: skip
    given |= {k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in values.items() if v is not None}
    flags = {("prove", "retain"): retain, ("verify", "expect"): expect, ("verify", "accept"): accept_teacher or None}
    for (stage, key), value in flags.items():
        if value is not None:
            given[stage] = {**given.get(stage, {}), key: value}
    return pipeline.distill(
        given, list(options), Path(out) if out is not None else None,
        teacher_object=None if isinstance(teacher, (str, Path)) else teacher,
        env_object=None if isinstance(env, str) else env, tell=say,
    )  # fmt: skip


def search(
    teacher: str | Path,
    env: str | None = None,
    out: str | Path = "runs/search",
    *,
    max_bytes: int | None = None,
    max_latency: str | float | None = None,
    env_steps: int | None = None,
    trials: int | None = None,
    students: Sequence[str] | None = None,
    sampler: str | None = None,
    storage: str | None = None,
    retain: float | None = None,
    accept_teacher: bool = False,
    seed: int | None = None,
    options: Sequence[str] = (),
) -> SearchResult:
    """Search architectures and methods within budgets; the front of size against return is proved and exported.

    Several processes with the same command share the work. The same command continues a search that was stopped.

    Args:
        teacher: As distill takes it, or recipe.yaml, whose students are left aside.
        env: Gymnasium id, package.module:EnvId, or digits.
        out: Folder of the search.
        max_bytes: Most bytes of a student's weights, 4 a number.
        max_latency: Most time of one step of its compiled C on this machine, such as 20us.
        env_steps: Budget of environment steps of all passes together; proofs come on top.
        trials: Candidates to train. Default 64.
        students: linear, mlp:*, gru:*, cnn:* or exact students. Default: what the observation asks for.
        sampler: TPESampler (default), NSGAIISampler or RandomSampler, of Optuna.
        storage: journal (default, a file in the folder) or sqlite:///FILE.
        retain: Share of the teacher to prove, .95 by default.
        accept_teacher: Distill the teacher whatever its return is.
        seed: Seed of everything. Default 0.
        options: Any other setting as STAGE.KEY=VALUE, such as search.depths=1,2 or collect.steps=512.
    """
    from limbeck.scale import search as searching

    command = [str(teacher), *([] if env is None else [env])]
    given: dict[str, Any] = {"teacher": str(teacher)}
    if str(teacher).endswith((".yaml", ".yml")):
        from limbeck import recipes

        given = {key: value for key, value in recipes.read(Path(teacher)).items() if key != "students"}
    given |= {key: value for key, value in {"env": env, "seed": seed}.items() if value is not None}
    if retain is not None:
        given["prove"] = {**given.get("prove", {}), "retain": retain}
    if accept_teacher:
        given["verify"] = {**given.get("verify", {}), "accept": True}
    flags = {"max_bytes": max_bytes, "max_latency": max_latency, "env_steps": env_steps, "trials": trials,
             "students": None if students is None else tuple(students), "sampler": sampler, "storage": storage}  # fmt: skip
    for name, value in {**flags, "retain": retain, "seed": seed, "options": tuple(options) or None}.items():
        if value is not None:
            command += [f"--{name.replace('_', '-')}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    command += ["--accept-teacher"] * accept_teacher
    return searching.search(given, flags, list(options), Path(out), command, say)


def teach(
    env: str,
    algorithm: str = "ppo",
    *,
    env_steps: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
) -> Any:
    """Train a teacher with Stable-Baselines3; the best checkpoint is kept and measured again on fresh seeds.

    Args:
        env: Gymnasium id.
        algorithm: ppo or dqn.
        env_steps: Training steps. Default: what the environment usually needs.
        seed: Seed of training.
        out: Folder of the teacher. Default: teachers/ENV-ALGORITHM.
    """
    from limbeck import teaching

    folder = Path(out or f"teachers/{env.replace('/', '-').replace(':', '-')}-{algorithm}")
    return teaching.teach(
        env, algorithm=algorithm, env_steps=env_steps, seed=seed, out=folder,
        on_progress=lambda steps, mean: say("teach", f"{steps:,} steps  return {mean:.1f}"),
    )  # fmt: skip


def record(
    teacher: Any,
    env: Any,
    out: str | Path,
    *,
    episodes: int = 100,
    mode: str = "greedy",
    seed: int = 0,
    options: Sequence[str] = (),
) -> Recordings:
    """Play a policy and write what it saw and did as a Minari data set, for `limbeck distill TEACHER --data OUT`.

    Args:
        teacher: Anything that distill takes as a teacher.
        env: Gymnasium id, or package.module:EnvId.
        out: Folder of the data set; a new one.
        episodes: How many episodes.
        mode: greedy or sampled.
        seed: Seed of the episodes.
        options: How to read the teacher and build the task, as KEY=VALUE: kind, architecture, normaliser, trust, task.wrappers ...
    """
    from limbeck import standalone

    return standalone.record(teacher, env, Path(out), episodes, mode, seed, list(options))


def demo(out: str | Path = "runs/demo", *, seed: int = 0) -> RunResult:
    """The whole job with the bundled LunarLander teacher: eight sizes, three seeds each, proved at 95 % and exported.

    Args:
        out: Run folder.
        seed: Seed of everything.
    """
    sizes = ("mlp:64x64", "mlp:32x32", "mlp:16x16", "mlp:8x8", "mlp:16", "mlp:8", "mlp:4", "linear")
    return distill(f"{PREFIX}ppo-lunar", "LunarLander-v3", [f"{size}@3" for size in sizes], out, seed=seed, retain=0.95)
