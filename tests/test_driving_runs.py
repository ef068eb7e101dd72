"""Whole runs: offline play, the driver that is chosen by measurement, stop rules, the best weights; also after kills."""

import json
import math
import signal

import numpy as np
import pytest
from cli_cases import called, fingerprint, killed_at, limbeck, tiny
from end_to_end_cases import no_film

from limbeck import storage
from limbeck.collection import STUDENT, TEACHER
from limbeck.dataset import open_dataset
from limbeck.runs import load_one

NOTHING_AFTER = {
    "polish": {"enabled": False}, "prove": {"max_episodes": 10, "bound_episodes": 10, "retain": 0.5},
    "export": {"targets": ["numpy"]}, "report": {"gallery": "off"},
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def unfilmed():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("limbeck.reporting.side_by_side", no_film)
        yield


def shards(folder):
    return open_dataset(folder / "dataset", "CartPole-v1").shards


def metrics(folder, stage):
    return [row for row in storage.read_metrics(folder) if row["stage"] == stage]


def lines(folder, key):
    return [row for row in storage.read_metrics(folder) if row["stage"] == "stopping" and key in row]


def last(folder):
    return load_one(sorted((folder / "checkpoints").glob("round-*"))[-1])


@pytest.mark.slow
def test_offline_plays_the_budget_at_once_and_then_nothing(tmp_path):
    recipe = tiny(tmp_path, collect={"driver": "offline"}, env_steps=500, **NOTHING_AFTER)
    folder = tmp_path / "run"
    point = "before:checkpoints/round-000002:1"
    assert killed_at(point, "distill", recipe, "--out", folder).returncode == -signal.SIGKILL
    done = limbeck("distill", recipe, "--out", folder)
    assert done.returncode == 0, done.stderr
    (only,) = shards(folder)
    assert 496 <= len(only["first"]) <= 500
    assert (only["driver"] == TEACHER).all()
    assert {row["env_steps"] for row in metrics(folder, "collect")} == {len(only["first"])}
    assert len(metrics(folder, "collect")) == 4  # 500 steps in rounds of at most 128


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("auto")
    recipe = tiny(folder, collect={"driver": "auto", "steps": 128}, **NOTHING_AFTER)
    code, _, err = called("distill", recipe, "--out", folder / "run")
    assert code == 0, err
    return recipe, folder / "run", err


def test_auto_compares_fresh_rows_of_one_shared_round_and_follows_what_it_measured(chosen):
    _, folder, said = chosen
    probe = shards(folder)[1]["driver"]
    assert 0.2 < (probe == STUDENT).mean() < 0.8
    assert set(np.unique(probe)) == {STUDENT, TEACHER}
    record = json.loads((folder / "records" / "driving.json").read_text())
    (row,) = metrics(folder, "driving")
    ratios = [m["student"] / m["teacher"] for m in record["members"].values()]
    assert record["ratio"] == pytest.approx(math.exp(np.mean(np.log(ratios))), rel=1e-3)
    assert record["driver"] == row["driver"] == ("student" if record["ratio"] > 2 else "teacher")
    wanted = STUDENT if record["driver"] == "student" else TEACHER
    assert all((shard["driver"] == wanted).all() for shard in shards(folder)[2:])
    assert f"{record['ratio']:.2f} times that on the teacher's" in said
    assert sum(len(s["first"]) for s in shards(folder)) <= 5 * 128, "the choice costs no step"
    taught = [row for row in metrics(folder, "stopping") if "taught_loss" in row]
    assert {row["round"] for row in taught} == {1, 2, 3, 4}


@pytest.mark.slow
def test_auto_chooses_again_the_same_after_a_kill(chosen, tmp_path):
    recipe, whole, _ = chosen
    for point in ("after:records/driving:1", "before:checkpoints/round-000003:1"):
        killed = killed_at(point, "distill", recipe, "--out", tmp_path / "cut")
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    code, _, err = called("distill", recipe, "--out", tmp_path / "cut")
    assert code == 0, err
    assert fingerprint(tmp_path / "cut") == fingerprint(whole)


def test_a_plateau_skips_the_remaining_rounds_and_says_so(tmp_path):
    """With a gain of 100 % asked for, no round is a gain: rounds 2, 3 and 4 are compared with round 2."""
    stop = {"stop": "plateau", "patience": 2, "stop_gain": 1.0, "rounds": 9}
    recipe = tiny(tmp_path, imitate=stop, **NOTHING_AFTER)
    code, _, err = called("distill", recipe, "--out", tmp_path / "run")
    assert code == 0, err
    assert "stopped after round 4 of 9: no member's loss on fresh student states fell by 100%" in err
    assert open_dataset(tmp_path / "run" / "dataset", "CartPole-v1").rounds == 4
    assert lines(tmp_path / "run", "why")[0]["rounds_skipped"] == 5
    assert {row["round"] for row in lines(tmp_path / "run", "fresh_loss")} == {1, 2, 3}
    assert last(tmp_path / "run")[1]["progress"]["stopped"]
    code, _, err = called("distill", recipe, "--out", tmp_path / "run")
    assert code == 0
    assert "round 5/9" not in err


def test_the_best_validated_weights_leave_the_run(tmp_path):
    """A learning rate that grows without bound makes late rounds worse, so the best round is an early one."""
    imitate = {"validation_share": 0.3, "keep_best": True, "rounds": 6, "stop": "validation", "patience": 2}
    imitate |= {"learning_rate": 1e-2, "final_learning_rate": 10.0, "gradient_steps": 20}
    recipe = tiny(tmp_path, students=["mlp:4"], imitate=imitate, **NOTHING_AFTER)
    code, _, err = called("distill", recipe, "--out", tmp_path / "run")
    assert code == 0, err
    arrays, meta = last(tmp_path / "run")
    best = meta["progress"]["best"]["mlp-4-s0"]
    rounds = [row["round"] for row in lines(tmp_path / "run", "held_out_loss")]
    assert best == rounds[-1] - 2, "it stopped two rounds after the best"
    assert "no member's loss on held-out episodes fell in 2 rounds" in err
    kept, theta = arrays["mlp-4-s0/beside/best"], arrays["mlp-4-s0/theta"]
    assert not np.allclose(kept, theta)
    shipped, _ = storage.read_arrays(tmp_path / "run" / "students" / "mlp-4-s0" / "policy.safetensors")
    head = next(value for value in shipped.values() if value.shape == (4, 2))
    assert np.isin(head.reshape(-1), kept).all()
    assert not np.isin(head.reshape(-1), theta).any()


@pytest.mark.slow
def test_a_run_on_its_own_episodes_futures_is_resumed_bit_for_bit(tmp_path):
    recipe = tiny(
        tmp_path,
        imitate={"loss": "entropy_regularised"},
        collect={"student_mode": "sampled", "lmbda": 0.7},
        **NOTHING_AFTER,
    )
    assert limbeck("distill", recipe, "--out", tmp_path / "whole").returncode == 0
    killed = killed_at("before:checkpoints/round-000003:1", "distill", recipe, "--out", tmp_path / "cut")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert limbeck("distill", recipe, "--out", tmp_path / "cut").returncode == 0
    assert fingerprint(tmp_path / "cut") == fingerprint(tmp_path / "whole")
    later = shards(tmp_path / "whole")[1:]
    drove = np.concatenate([shard["member"] for shard in later])
    assert {-1, 0} < set(drove.tolist())
    assert (np.concatenate([shard["to_go"] for shard in later])[drove >= 0] != 0).mean() > 0.9
