"""The verbs as their users call them, on real teachers and real environments, with small budgets."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from end_to_end_cases import CARTPOLE, EVERYTHING, FAST, assert_sound, metrics, small, weights
from end_to_end_cases import quiet_process as quiet_process

import limbeck
from limbeck import cli, seeding, storage, tasks
from limbeck.dataset import open_dataset
from limbeck.reporting import load_result
from limbeck.runtimes import firmware

NO_C = ("export.targets=numpy", "prove.max_episodes=8")  # where exports and proofs are not looked at

# ---------------------------------------------------------------- one run, looked at from all sides


@pytest.fixture(scope="module")
def main(tmp_path_factory):
    """A whole run with its film and all that a report may hold: (folder, result)."""
    folder = tmp_path_factory.mktemp("main") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks.watchdog, "hard_exit", False)
        options = ["collect.steps=500", "imitate.rounds=5", "imitate.gradient_steps=200", "collect.teacher_rounds=2", *EVERYTHING]  # fmt: skip
        result = small(CARTPOLE, "CartPole-v1", folder, ("mlp:16x16@2", "mlp:8"), options, retain=0.8)
    return folder, result


@pytest.fixture
def copied(main, tmp_path):
    """A copy of the main run to be changed: (folder, result)."""
    shutil.copytree(main[0], tmp_path / "run")
    return tmp_path / "run", main[1]


def test_a_run_keeps_what_it_says(main):
    folder, result = main
    assert_sound(folder, result, 2500)
    assert [m.parameters for m in result.members] == sorted((m.parameters for m in result.members), reverse=True)
    best = result.members[0]
    assert best.proof is not None
    assert best.proof.verdict == "proved", best.proof.reason
    assert best.proof.played_by == "c"
    assert best.proof.retention_low >= 0.8
    assert set(best.proof.fidelity) == {"agreement", "kl"}
    assert best.proof.fidelity["agreement"] > 0.7
    assert set(best.latency) == {"c", "onnx", "numpy"}
    assert (folder / "video.mp4").stat().st_size > 5_000
    assert list((folder / "records").glob("gallery*.json")), "where it differs from the teacher was looked for"
    (c,) = [artifact for artifact in best.artifacts if artifact.target == "c"]
    assert [device.name for device in c.devices] == ([] if firmware.missing("cortex-m0") else ["cortex-m0"])
    stages = {seeding.stage_of(seed) for seed in best.proof.seeds}
    assert stages == {"proof"}, "no seed of a proof was seen by racing or selection"


def test_the_same_settings_give_the_same_students_by_every_road(tmp_path, capsys):
    calls = tmp_path / "python", tmp_path / "shell", tmp_path / "recipe"
    result = small(CARTPOLE, "CartPole-v1", calls[0], options=NO_C, seed=3)
    assert cli.main(["distill", CARTPOLE, "--env", "CartPole-v1", "--students", "mlp:8@2", "linear", "--seed", "3", "--out", str(calls[1]),
                     "--options", *FAST, *NO_C, "--json"]) == 0  # fmt: skip
    said = json.loads(capsys.readouterr().out)
    assert cli.main(["distill", str(calls[0] / "recipe.yaml"), "--out", str(calls[2])]) == 0
    first, *others = (weights(folder) for folder in calls)
    assert first
    assert all(other == first for other in others)
    assert said["members"][0]["name"] == result.members[0].name
    again = load_result(calls[2])
    assert (
        again.bill.env_steps
        == result.bill.env_steps
        == said["bill"]["verify_steps"]
        + sum(
            said["bill"][key]
            for key in ("collection_steps", "race_steps", "polish_steps", "proof_steps", "other_steps")
        )
    )
    assert [m.proof and m.proof.student_returns for m in again.members] == [
        m.proof and m.proof.student_returns for m in result.members
    ]
    small(CARTPOLE, "CartPole-v1", tmp_path / "other", options=NO_C, seed=4)
    assert first != weights(tmp_path / "other"), "the seed matters"


def test_a_finished_run_is_told_again_without_playing(main, capsys, monkeypatch):
    folder, result = main
    monkeypatch.setattr("limbeck.rollout.play", _must_not_play)
    assert cli.main(["distill", str(folder / "recipe.yaml"), "--out", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bill"]["proof_steps"] == result.bill.proof_steps


def _must_not_play(*a, **k):
    raise AssertionError("a finished run was played again")


def test_check_and_report(copied, capsys):
    folder, _ = copied
    assert cli.main(["check", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("ok   onnx") for line in lines) == 2
    assert sum(line.startswith("ok   c ") for line in lines) >= 2
    assert not any(line.startswith("FAIL") for line in lines)
    (folder / "report.html").unlink()
    assert cli.main(["report", str(folder)]) == 0
    assert str(folder / "report.html") in capsys.readouterr().out.replace("\n", "")
    assert "CartPole-v1" in (folder / "report.html").read_text()
    assert storage.check_manifest(folder) == []
    with (folder / "artifacts" / "mlp-8-s0" / "onnx" / "policy.onnx").open("ab") as stream:
        stream.write(b"!")
    assert cli.main(["check", str(folder)]) == 5  # damage
    assert "policy.onnx" in capsys.readouterr().err


def test_export_members_of_a_run(copied, capsys, tmp_path):
    folder, result = copied
    assert (
        cli.main(
            ["export", str(folder), "--members", "all", "--to", "c", "onnx", "numpy", "--out", str(tmp_path / "out")]
        )
        == 0
    )
    assert {p.name for p in (tmp_path / "out").iterdir()} == {m.name for m in result.members}
    assert cli.main(["check", str(tmp_path / "out" / "mlp-8-s0"), "--episodes", "0"]) == 0
    assert {line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("ok")} == {
        "c",
        "onnx",
        "numpy",
    }
    assert cli.main(["export", str(folder), "--to", "numpy"]) == 0  # the smallest proved one, into the run itself
    assert storage.check_manifest(folder) == []
    assert cli.main(["check", str(folder), "--episodes", "0"]) == 0
    assert cli.main(["prove", f"{folder}:{result.members[0].name}", "--retain", ".8"]) == 0, (
        "what was exported before still plays"
    )
    assert cli.main(["export", str(folder), "--members", "nobody"]) == 2


def test_export_one_file(main, capsys, tmp_path):
    policy = tmp_path / "policy.safetensors"
    shutil.copy(main[0] / "students" / "mlp-8-s0" / "policy.safetensors", policy)
    assert cli.main(["export", str(policy), "--to", "onnx"]) == 0
    assert cli.main(["check", str(tmp_path / "policy-artifacts")]) == 0
    assert "ok" in capsys.readouterr().out
    assert cli.main(["export", str(tmp_path / "nothing.safetensors")]) == 2
    assert "nothing.safetensors" in capsys.readouterr().err


def test_prove_continues_the_stored_proof(copied, capsys):
    folder, result = copied
    name, stored = result.members[0].name, result.members[0].proof
    more = limbeck.prove(f"{folder}:{name}", retain=0.9, max_episodes=120)
    assert more.seeds[: stored.episodes] == stored.seeds
    assert more.student_returns[: stored.episodes] == stored.student_returns
    assert more.episodes > stored.episodes
    assert more.env_steps > stored.env_steps
    again = limbeck.prove(f"{folder}:{name}", retain=0.95, max_episodes=200)
    assert again.episodes >= more.episodes
    assert again.student_returns[: more.episodes] == more.student_returns
    assert cli.main(["prove", f"{folder}:{name}", "--plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pilot_episodes"] == 32
    assert cli.main(["prove", f"{folder}:nobody"]) == 2


def test_prove_stands_alone(main, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    student = main[0] / "students" / "mlp-16x16-s0" / "policy.safetensors"
    student = student if student.exists() else next((main[0] / "students").glob("mlp-16x16*/policy.safetensors"))
    artifact = main[0] / "artifacts" / student.parent.name
    common = ["--retain", ".7", "--max-episodes", "60", "--options", "prove.bound_episodes=40", "verify.episodes=10"]
    assert cli.main(["prove", str(student), CARTPOLE, "CartPole-v1", *common, "--json"]) == 0
    proof = json.loads(capsys.readouterr().out)
    assert proof["verdict"] == "proved", proof["reason"]
    assert proof["played_by"] == "numpy"
    assert json.loads(Path("proof.json").read_text())["proof"]["seeds"] == proof["seeds"]
    assert cli.main(["prove", str(artifact), CARTPOLE, "CartPole-v1", *common, "--out", "a.json", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["played_by"] == "c"
    assert cli.main(["prove", str(artifact), CARTPOLE, "CartPole-v1", *common, "--out", "proof.json"]) == 5, (
        "another claim's file"
    )
    assert cli.main(["prove", str(student), CARTPOLE, "CartPole-v1", *common, "--plan"]) == 0
    assert "episodes" in capsys.readouterr().out
    assert cli.main(["prove", str(student), CARTPOLE]) == 2


def test_a_student_teaches_in_its_turn(main, tmp_path):
    best = main[1].members[0].name
    teacher = main[0] / "students" / best / "policy.safetensors"
    result = small(
        teacher,
        "CartPole-v1",
        tmp_path / "run",
        ["mlp:16x16"],
        ["collect.steps=500", "imitate.rounds=5", "imitate.gradient_steps=200"],
        retain=0.5,
    )
    assert result.teacher.format == "limbeck"
    assert result.teacher.stated["teacher_sha256"] == main[1].teacher.sha256, "whose student the teacher is"
    assert result.members[0].proof.verdict == "proved", result.members[0].proof.reason


# ---------------------------------------------------------------- drivers, budgets, races, polish


@pytest.mark.parametrize(
    ("driver", "codes"), [("teacher", {0}), ("student", {0, 1}), ("beta", {0, 1}), ("trb", {0, 3})]
)
def test_drivers(tmp_path, driver, codes):
    result = small(CARTPOLE, "CartPole-v1", tmp_path / "run", ["mlp:8@2"], [f"collect.driver={driver}", *NO_C])
    assert_sound(tmp_path / "run", result, 768)
    stored = open_dataset(tmp_path / "run" / "dataset", "CartPole-v1")
    assert set(np.unique(stored.column("driver")).tolist()) == codes
    drivers = [row["driver"] for row in metrics(tmp_path / "run", "collect")]
    assert drivers == ["teacher", driver, driver]


@pytest.mark.parametrize(("budget", "rounds"), [(100, 1), (700, 3), (1000, 4)])
def test_a_budget_of_environment_steps_is_kept(tmp_path, budget, rounds):
    result = small(
        CARTPOLE,
        "CartPole-v1",
        tmp_path / "run",
        ["linear"],
        NO_C,
        env_steps=budget,
    )
    assert budget * 0.9 <= result.bill.collection_steps <= budget
    assert len(metrics(tmp_path / "run", "collect")) == rounds


def test_races_leave_one_of_each_size(tmp_path):
    options = ["race.rounds=1,2", "race.episodes=2", *NO_C]
    result = small(CARTPOLE, "CartPole-v1", tmp_path / "run", ("mlp:8@5", "mlp:4@2", "linear"), options)
    kept = [
        {row["member"] for row in metrics(tmp_path / "run", "race") if row["round"] == r and row["kept"]}
        for r in (0, 1)
    ]
    count = [{spec: sum(m.startswith(spec) for m in names) for spec in ("mlp-8", "mlp-4", "linear")} for names in kept]
    assert count == [{"mlp-8": 3, "mlp-4": 1, "linear": 1}, {"mlp-8": 2, "mlp-4": 1, "linear": 1}]
    assert kept[1] <= kept[0]
    assert [m.spec for m in result.members] == ["mlp:8", "mlp:4", "linear"]
    assert all(m.name in kept[1] for m in result.members)


def test_polish_mends_what_imitation_left_and_is_billed(tmp_path):
    options = ["polish.enabled=True", "polish.generations=12", "polish.pairs=8", "polish.episodes=3", "polish.validate_every=2",
               "polish.validation_episodes=10", "polish.sigma=0.4", "polish.learning_rate=0.4", "polish.max_parameters=20",
               "imitate.rounds=1", "imitate.gradient_steps=3", "collect.steps=64", "export.targets=numpy", "prove.max_episodes=100"]  # fmt: skip
    result = small(CARTPOLE, "CartPole-v1", tmp_path / "run", ["linear"], options, retain=0.5)
    assert_sound(tmp_path / "run", result, 64)
    told, linear = metrics(tmp_path / "run", "polish"), result.members[0]
    scores = json.loads((tmp_path / "run" / "records" / "choice.json").read_text())["scores"]
    assert scores["linear-s0"] < 50, "three gradient steps teach nothing"
    assert linear.polished
    assert linear.proof.verdict == "proved", linear.proof.reason
    assert result.bill.polish_steps > sum(2 * 8 * 3 * 8 for _ in told), (
        "no episode of CartPole is shorter than eight steps"
    )
    large = small(CARTPOLE, "CartPole-v1", tmp_path / "large", ["mlp:8"], options, retain=0.5)
    assert not large.members[0].polished, "larger members are left as imitation made them"
    assert large.bill.polish_steps == 0
    assert large.members[0].proof.verdict == "not proved"
