"""Bad input and faults: the exit code, one line that says what was given, what is allowed and what to do, nothing lost."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import pickle
import resource
import shutil
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from cli_cases import TEACHER, Answer, caller, hashes, limbeck, refusal, students, tiny
from end_to_end_cases import no_film

from limbeck import blueprints, cli, storage, tasks, teachers
from limbeck.reporting import load_result

Call = Callable[..., Answer]

FAULTY = '''
"""CartPole that misbehaves after so many steps of a process, as the file `behaviour` beside it says."""
import time
from pathlib import Path

import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

HERE = Path(__file__).parent
steps = 0


class Faulty(CartPoleEnv):
    def step(self, action):
        global steps
        steps += 1
        print("an environment that talks")
        observation, reward, terminated, truncated, info = super().step(action)
        what, after = (HERE / "behaviour").read_text().split()
        if steps > int(after):
            if what == "raise":
                raise RuntimeError("the motor burnt out\\nbadly")
            if what == "nan":
                observation = observation * float("nan")
            if what == "hang":
                time.sleep(3600)
            if what == "deaf":
                while True:
                    try:
                        time.sleep(3600)
                    except BaseException:
                        pass
        return observation, reward, terminated, truncated, info


gymnasium.register("Faulty-v0", entry_point=Faulty, max_episode_steps=60)
'''


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    return caller(monkeypatch, capsys)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("finished")
    done = limbeck("distill", tiny(folder), "--out", folder / "run", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["task"] == "CartPole-v1"
    return folder / "run"


# ---------------------------------------------------------------- the teacher's file


def truncated() -> bytes:
    return TEACHER.read_bytes()[:70_000]


def corrupt() -> bytes:
    content = bytearray(TEACHER.read_bytes())
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        info = archive.getinfo("policy.pth")
    middle = info.header_offset + info.compress_size // 2
    content[middle : middle + 64] = bytes(64)
    return bytes(content)


def bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", "{}")
        archive.writestr("policy.pth", bytes(30 * 2**20))
    return file.getvalue()


def not_a_number() -> bytes:
    """The fixture with one weight replaced by NaN."""
    file = io.BytesIO()
    with zipfile.ZipFile(TEACHER) as source, zipfile.ZipFile(file, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "policy.pth":
                weights = torch.load(io.BytesIO(content), weights_only=True)
                weights["action_net.weight"][0, 0] = float("nan")
                buffer = io.BytesIO()
                torch.save(weights, buffer)
                content = buffer.getvalue()
            target.writestr(name, content)
    return file.getvalue()


class Program:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("echo run > ran",)


def pickled() -> bytes:
    return pickle.dumps(Program())


def torchscript() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(4, 2), torch.zeros(1, 4)), file)
    return file.getvalue()


def exported_program() -> bytes:
    file = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Linear(4, 2), (torch.zeros(1, 4),)), file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "make", "code", "words"),
    [
        ("truncated.zip", truncated, 2, "damaged or truncated zip"),
        ("empty.zip", bytes, 2, "is empty. Copy or save the teacher again."),
        ("corrupt.zip", corrupt, 2, "Copy or save it again"),
        ("bomb.zip", bomb, 2, "packed at most 200:1. Save the teacher again."),
        ("text.zip", lambda: b"hello there", 2, "no teacher format. Allowed: "),
        ("nan.zip", not_a_number, 2, "NaN or infinite"),
        ("teacher.pkl", pickled, 4, "Refused, nothing was run. Allowed: "),
        ("teacher.pt", torchscript, 4, "Allowed: "),
        ("teacher.pt2", exported_program, 4, "Allowed: "),
    ],
)
def test_teachers_that_are_refused(
    name: str,
    make: Callable[[], bytes],
    code: int,
    words: str,
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(make())
    line = refusal(call("distill", name, "--env", "CartPole-v1", "--out", "run"), code)
    assert name in line
    assert words in line
    assert sorted(p.name for p in tmp_path.iterdir()) == [name], "no folder, and no code was run"


def test_no_such_file(call: Call, tmp_path: Path) -> None:
    line = refusal(call("distill", tmp_path / "none.zip", "--env", "CartPole-v1", "--out", tmp_path / "run"), 2)
    assert f"no teacher at {tmp_path / 'none.zip'}: No such file or directory. Give an existing file" in line
    for verb, arguments in {
        "inspect": ["none.zip"],
        "check": ["none"],
        "report": ["none"],
        "export": ["none"],
        "prove": ["none:linear"],
    }.items():
        assert "none" in refusal(call(verb, *arguments), 2)
    assert not (tmp_path / "run").exists()


def test_weights_of_a_student_that_are_no_numbers(call: Call, finished: Path, tmp_path: Path) -> None:
    arrays, meta = storage.read_arrays(finished / "students" / "linear-s0" / "policy.safetensors")
    arrays[next(iter(arrays))].flat[0] = np.nan
    storage.write_arrays(tmp_path / "nan.safetensors", arrays, meta)
    assert "nan.safetensors" in refusal(call("export", tmp_path / "nan.safetensors"), 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["nan.safetensors"], "no partial artefact"


# ---------------------------------------------------------------- names and values


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["distil"], "unknown verb 'distil'; did you mean 'distill'? Allowed: distill, search, inspect"),
        (["distill", "TEACHER", "--env", "Acrobot-v1"], "Acrobot-v1"),
        (["distill", "TEACHER", "--env", "LunarLander-v3"], "LunarLander-v3"),
        (["distill", "TEACHER", "--env", "CartPoll-v1"], "unknown environment 'CartPoll-v1'; did you mean 'CartPole-v1'? Allowed: "),
        (["distill", "TEACHER", "--env", "CartPole-v9"], "the version here is 'CartPole-v1'"),
        (["distill", "TEACHER", "--env", "no_such_module:X-v0"], "'no_such_module' cannot be imported"),
        (["distill", "TEACHER", "--env", "CartPole-v1", "--studnets", "linear"], "unknown argument '--studnets'; did you mean '--students'?"),
        (["distill", "TEACHER", "--env", "CartPole-v1", "--students", "mpl:8"], "mpl:8"),
        (["distill", "TEACHER", "--env", "CartPole-v1", "--students", "mlp:0"], "mlp:0"),
        (["distill", "TEACHER", "--env", "CartPole-v1", "--students", "mlp:8@x"], "mlp:8@x"),
        (["distill", "TEACHER", "--env", "CartPole-v1", "--options", "colect.slots=8"], "unknown stage 'colect'; did you mean 'collect'? Allowed: "),
        (["distill", "TEACHER", "--env", "CartPole-v1", "--options", "collect.slot=8"], "unknown recipe key in collect 'slot'; did you mean 'slots'? Allowed: "),
        (["distill", "TEACHER", "--env", "CartPole-v1", "--options", "collect.slots=many"], "collect.slots = 'many'"),
        (["distill", "TEACHER", "--env", "CartPole-v1", "--retain", "7"], "prove.retain = 7, allowed 0.01 to 1.5"),
        (["distill", "TEACHER", "--env", "CartPole-v1", "--seed", "x"], "x"),
        (["distill", "TEACHER"], "the recipe has neither env nor data. Needed: "),
        (["distill"], "needs TEACHER. See: limbeck distill --help"),
        (["prove", "TEACHER", "TEACHER"], "needs an environment"),
    ],
)  # fmt: skip
def test_names_and_values_that_are_refused(
    arguments: list[str], words: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refusal(call(*(str(TEACHER) if a == "TEACHER" else a for a in arguments)), 2)
    assert words in line
    assert list(tmp_path.iterdir()) == [], "nothing was written"


def test_a_recipe_with_an_unknown_key(call: Call, tmp_path: Path) -> None:
    recipe = tiny(tmp_path, collect={"slotts": 3})
    assert "unknown recipe key in collect 'slotts'; did you mean 'slots'?" in refusal(call("distill", recipe), 2)


def test_debug_shows_the_trace_and_keeps_code_and_line(call: Call) -> None:
    code, out, err = call("distill", "none.zip", "--env", "CartPole-v1", "--debug")
    assert (code, out) == (2, "")
    assert err.startswith("Traceback (most recent call last):")
    assert err.strip().splitlines()[-1].startswith("limbeck: no teacher at none.zip")


def test_json_on_an_error_leaves_standard_output_empty(call: Call) -> None:
    assert "no teacher at none.zip" in refusal(call("inspect", "none.zip", "--json"), 2)


# ---------------------------------------------------------------- environments


@pytest.fixture
def faulty(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Answer]]:
    """Runs the same command on an environment that behaves as it is told this time; `apart`: in a process of its own."""
    (tmp_path / "faulty_env.py").write_text(FAULTY)
    recipe = tiny(
        tmp_path,
        env="faulty_env:Faulty-v0",
        task={"kwargs": {}, "step_timeout": 1},
        polish={"enabled": False},
        imitate={"rounds": 7},
    )

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("limbeck.reporting.side_by_side", no_film)

    def run(behaviour: str, out: str = "run", apart: bool = False) -> Answer:
        (tmp_path / "behaviour").write_text(behaviour)
        words = ("distill", recipe, "--out", out, "--json")
        if apart:
            done = limbeck(*words)
            return done.returncode, done.stdout, done.stderr
        sys.modules.pop("faulty_env", None)  # imported again, it counts its steps from 0 as in a new process
        return call(*words)

    yield run
    sys.modules.pop("faulty_env", None)
    gymnasium.registry.pop("Faulty-v0", None)


def rounds_kept(folder: Path) -> int:
    return max(int(p.stem.split("-")[1]) + 1 for p in (folder / "checkpoints").glob("round-*"))


def test_an_environment_that_fails_in_three_ways(faulty: Callable[..., Answer], tmp_path: Path) -> None:
    """Each fault ends with code 6 and keeps the finished rounds; mended, the same command ends as if nothing had been."""
    line = refusal(faulty("raise 900"), 6)
    assert "faulty_env:Faulty-v0 raised RuntimeError in step at step " in line
    assert "the motor burnt out\\nbadly. Mend the environment; finished rounds are kept." in line
    kept = [rounds_kept(tmp_path / "run")]
    line = refusal(faulty("nan 450"), 6)
    assert "returned an observation that is not finite at step " in line
    kept.append(rounds_kept(tmp_path / "run"))
    line = refusal(faulty("hang 450"), 6)
    assert (
        "Faulty-v0.step did not return within 1 s. Mend the environment, or allow more with --options task.step_timeout=SECONDS."
        in line
    )
    kept.append(rounds_kept(tmp_path / "run"))
    assert kept == sorted(set(kept)), "every start got further"
    code, out, err = faulty("fine 0")
    assert code == 0, err
    assert f"continuing after round {kept[-1]} of 7" in err
    assert json.loads(out)["task"] == "faulty_env:Faulty-v0", "what the environment prints stays out of the JSON"
    assert faulty("fine 0", "other")[0] == 0
    assert students(tmp_path / "other") == students(tmp_path / "run") != {}


@pytest.mark.slow
def test_an_environment_that_cannot_be_interrupted(faulty: Callable[..., Answer]) -> None:
    line = refusal(faulty("deaf 900", apart=True), 6)
    assert "did not return within 1 s" in line


# ---------------------------------------------------------------- disks and folders


@contextlib.contextmanager
def limited(size: int) -> Iterator[None]:
    """A disk on which no file of this process and its children can grow beyond `size` bytes; Python ignores the signal
    and gets EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk(call: Call, finished: Path, tmp_path: Path) -> None:
    """First no shard fits, then no page; with room the same command ends as the run that always had room."""
    recipe, folder = tiny(tmp_path), tmp_path / "run"
    page = (finished / "report.html").stat().st_size
    for size, missing in ((5_000, "round-00000.safetensors"), (page - 1000, "report.html")):
        with limited(size):
            answer = call("distill", recipe, "--out", folder)
        line = refusal(answer, 5)
        assert missing in line
        assert "Free that much space, then run the same command again; nothing was lost." in line
        assert not [p for p in folder.rglob("*") if storage.is_aside(p)]
        assert not (folder / missing).exists()
    code, _, err = call("distill", recipe, "--out", folder)
    assert code == 0, err
    assert students(folder) == students(finished)


def test_a_folder_that_cannot_be_written_to(call: Call, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    folder = Path("/proc/limbeck-run") if os.geteuid() == 0 else tmp_path / "locked" / "run"
    answer = call("distill", tiny(tmp_path), "--out", folder)
    assert str(folder) in refusal(answer, 5)
    assert "verify " not in answer[2], "refused before anything is played"


def test_a_file_where_the_folder_should_be(call: Call, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    assert "choose another --out" in refusal(call("distill", tiny(tmp_path), "--out", tmp_path / "run"), 5)
    assert (tmp_path / "run").read_text() == "mine"


def test_a_run_folder_in_use(call: Call, finished: Path, tmp_path: Path) -> None:
    with storage.locked(finished):
        line = refusal(call("distill", tiny(tmp_path), "--out", finished), 5)
    assert f"{finished} is in use by process {os.getpid()} on " in line


def test_a_run_folder_of_another_recipe(call: Call, finished: Path, tmp_path: Path) -> None:
    before = hashes(finished)
    line = refusal(call("distill", tiny(tmp_path), "--out", finished, "--retain", "0.2"), 5)
    assert f"{finished} was made by another recipe: prove.retain differs. Choose another --out" in line
    assert hashes(finished) == before


@pytest.mark.parametrize("name", ["result.json", "records/verify.json"])
def test_a_damaged_record(name: str, call: Call, finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    (folder / name).write_bytes((finished / name).read_bytes()[:50])
    assert f"{folder / name} is damaged" in refusal(call("distill", tiny(tmp_path), "--out", folder), 5)


# ---------------------------------------------------------------- JSON, and a machine without a compiler


def weights(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in students(folder).items() if name.endswith(".safetensors")}


def test_every_verb_prints_json_alone(
    call: Call, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    finished = Path(shutil.copytree(finished, tmp_path / "finished"))  # proving and exporting add to it
    policy = finished / "students" / "linear-s0" / "policy.safetensors"
    few = (
        "--options",
        "verify.episodes=4",
        "verify.random_episodes=8",
        "prove.bound_episodes=10",
        "--max-episodes",
        "8",
    )
    for arguments in (
        ["distill", tiny(tmp_path), "--out", finished],
        ["inspect", TEACHER],
        ["prove", f"{finished}:linear-s0", "--retain", "0.1"],
        ["prove", policy, TEACHER, "CartPole-v1", *few],
        ["prove", policy, TEACHER, "CartPole-v1", "--plan", *few],
        ["export", finished, "--members", "linear-s0", "--to", "c"],
        ["export", policy, "--out", "exported"],
        ["check", finished],
        ["report", finished],
        ["teach", "CartPole-v1", "--env-steps", "256", "--out", "taught"],
    ):
        code, out, err = call(*arguments, "--json")
        assert code == 0, (arguments, err)
        json.loads(out, parse_constant=pytest.fail)


def test_without_a_c_compiler(call: Call, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    code, _, err = call("distill", tiny(tmp_path), "--out", tmp_path / "run")
    assert code == 0, err
    assert "C written, not proved here: no C compiler" in err
    result = load_result(tmp_path / "run")
    assert {m.proof.played_by for m in result.members if m.proof is not None} == {"numpy"}
    assert [(a.target, a.compiled) for a in result.members[0].artifacts] == [("onnx", True), ("c", False)]
    assert weights(tmp_path / "run") == weights(finished) != {}, "their cards differ, in the size of what was exported"


def test_what_is_refused_leaves_the_loaders_usable() -> None:
    """The refusals above are not the only thing that loading does."""
    teacher = teachers.load(str(TEACHER), tasks.resolve("CartPole-v1").spec)
    assert teacher.blueprint is not None
    assert blueprints.fold(teacher.blueprint).parameters > 0


# ---------------------------------------------------------------- recordings

FIXTURES = TEACHER.parent
DEMOS = FIXTURES / "demos_recordings.npz"
MINARI = FIXTURES / "demos_minari_cartpole"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["distill", DEMOS, "--env", "Acrobot-v1"], "do not fit Acrobot-v1: observations (4,) against (6,)."),
        (["distill", FIXTURES / "demos_recordings_dict.npz", "--env", "CartPole-v1"], "do not fit CartPole-v1"),
        (["distill", TEACHER, "--data", FIXTURES / "demos_recordings_dict.npz"], "do not fit what the teacher sees"),
        (["distill", TEACHER, "--data", FIXTURES / "demos_recordings_dict.npz", "--env", "CartPole-v1"], "do not fit CartPole-v1"),
        (["distill", DEMOS, "--env", "CartPole-v1", "--kind", "q"], "--kind was given for the recordings"),
        (["distill", DEMOS, "--env", "CartPole-v1", "--trust", "0"], "--trust was given for the recordings"),
        (["distill", f"ensemble:{DEMOS},{TEACHER}", "--env", "CartPole-v1"], "recordings, which cannot play CartPole-v1"),
        (["distill", TEACHER, "--data", DEMOS, "--options", "task.wrappers=frames:4"], "without an environment"),
        (["distill", TEACHER, "--env", "CartPole-v1", "--options", "teacher_keys=a"], "need a Dict observation"),
        (["distill", TEACHER, "--env", "CartPole-v1", "--options", "race.rounds=-1"], "race.rounds = -1, allowed"),
        (["distill", TEACHER, "--env", "CartPole-v1", "--expect", "nan"], "verify.expect = nan, allowed"),
        (["distill", TEACHER, "--env", "CartPole-v1", "--students", "mlp:8:relo"], "unknown activation 'relo'; did you mean 'relu'?"),
        (["distill", TEACHER, "--options", "seed=1", "--options", "seed=2"], "--options was given twice."),
        (["distill", TEACHER, "--indices", "0.5"], "--indices was given '0.5', which it does not take."),
        (["inspect", "os:system"], "Python objects are not inspected"),
        (["record", DEMOS, "CartPole-v1", "out"], "is recordings already"),
        (["record", TEACHER, "CartPole-v1", ""], "OUT is empty"),
        (["record", TEACHER, "CartPole-v1", "out", "--seed", "-1"], "seed = -1, allowed 0 to"),
    ],
)  # fmt: skip
def test_recordings_and_options_that_are_refused(
    arguments: list[str | Path], words: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refusal(call(*arguments), 2)
    assert list(tmp_path.iterdir()) == [], "nothing was written"


def test_recording_where_something_lies(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("folder").mkdir()
    Path("folder/x").write_text("mine")
    assert call("record", TEACHER, "CartPole-v1", "set", "--episodes", "1")[0] == 0
    before = hashes(tmp_path)
    for place, words in {
        "file": "is no folder",
        "folder": "holds 'x'",
        "set": "holds a data set already",
        "/dev/null/x": "/dev/null",
        "x" * 300: "File name too long",
    }.items():
        assert words in refusal(call("record", TEACHER, "CartPole-v1", place, "--episodes", "1"), 5)
    assert hashes(tmp_path) == before


def test_recording_onto_a_full_disk(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The HDF5 library ends the process where it cannot write; here a line is told, and with room it is done."""
    monkeypatch.chdir(tmp_path)
    arguments = ("record", TEACHER, "CartPole-v1", "set", "--episodes", "2")
    with limited(3000):
        done = limbeck(*arguments)
    assert "Free that much space" in refusal((done.returncode, done.stdout, done.stderr), 5)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    assert call(*arguments)[0] == 0


def test_a_refused_teacher_may_be_accepted_in_the_same_folder(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limbeck.reporting.side_by_side", no_film)
    recipe, out = tiny(tmp_path), ("--out", tmp_path / "run")
    line = refusal(call("distill", recipe, *out, "--expect", "9000"), 2)
    assert "--accept-teacher" in line
    code, _, err = call("distill", recipe, *out, "--expect", "9000", "--accept-teacher")
    assert code == 0, err


def test_verbs_on_a_run_without_an_environment(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be proved, and the refusal says what can; exporting works from the recordings."""
    monkeypatch.chdir(tmp_path)
    recipe = tiny(tmp_path, env=None, data=str(MINARI))
    values = yaml.safe_load(recipe.read_text())
    del values["task"]
    recipe.write_text(yaml.safe_dump(values))
    code, _, err = call("distill", recipe, "--students", "linear", "--out", "run")
    assert code == 0, err
    policy = "run/students/linear-s0/policy.safetensors"
    assert f"has no environment. Give a student, a teacher that can play, and an environment: limbeck prove {policy}" in refusal(call("prove", "run:linear-s0"), 2)  # fmt: skip
    assert "which is no environment here. Give one with --env" in refusal(call("export", policy, "--out", "x"), 2)
    assert call("export", "run", "--members", "linear-s0", "--to", "c")[0] == 0
    assert call("check", "run")[0] == 0
    assert call("report", "run")[0] == 0


def test_a_teacher_that_ends_the_program(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quitter.py").write_text("def act(obs):\n    raise SystemExit(0)\n")
    line = refusal(call("distill", "quitter:act", "--env", "CartPole-v1"), 6)
    assert "called exit (0). Mend it" in line


# ---------------------------------------------------------------- exports


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--members", "all", "--to", "numpy", "--out", "/etc/passwd"], 5, "A file stands where a folder is needed"),
        (["--members", "all", "--to", "numpy", "--out", "/proc/x"], 5, "cannot be written to"),
        (["--to", "numpy", "--members"], 2, "--members names no member. Allowed: mlp-2-s0, "),
        (["--to"], 2, "--to names no target. Allowed: c, "),
    ],
)
def test_places_and_names_of_exports(
    arguments: list[str], code: int, words: str, call: Call, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("limbeck.exporters.golden.record", None)
    before = hashes(finished)
    assert words in refusal(call("export", finished, *arguments), code)
    assert hashes(finished) == before


@pytest.mark.parametrize("arguments", [["--version"], ["distil"]])
def test_a_signal_after_the_verb_ends_the_process_without_a_word(arguments: list[str]) -> None:
    before = signal.signal(signal.SIGTERM, cli._terminate)
    try:
        cli.main(arguments)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("verb", "words"), [("play", "terminated. Run the same"), ("distill", "Finished rounds are")])
def test_only_verbs_with_rounds_say_that_rounds_are_saved(
    verb: str, words: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminated(*given: object, **named: object) -> None:
        cli._terminate(signal.SIGTERM, None)

    monkeypatch.setitem(cli.VERBS, verb, functools.wraps(cli.VERBS[verb])(terminated))
    assert words in refusal(call(verb, "x"), 143)


def test_a_run_in_use_gets_no_new_page(call: Call, finished: Path) -> None:
    before = hashes(finished)
    with storage.locked(finished):
        assert f"{finished} is in use by process {os.getpid()} on " in refusal(call("report", finished), 5)
    assert hashes(finished) == before


def test_a_run_whose_manifest_lists_nothing(call: Call, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "manifest.json").write_text("{}")
    assert "recipe.yaml, result.json is not in manifest.json." in refusal(call("check", tmp_path / "run"), 2)
