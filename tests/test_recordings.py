"""Recordings: read from .npz and Minari's layout, written back, damaged, hostile; imitated with and without an environment."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from pathlib import Path

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import limbeck
from limbeck import collection, recordings, seeding, tasks, teachers
from limbeck.contracts import Spec
from limbeck.errors import InputError, LimbeckError, StorageError, UnsafeError
from limbeck.recordings import minari_layout, records
from limbeck.tasks.recorded import agreement

FIXTURES = Path(__file__).parent / "fixtures"
MINARI = FIXTURES / "demos_minari_cartpole"
BOX = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)


def arrays(episodes: int = 8, steps: int = 10) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    rows = episodes * steps
    ends = np.arange(rows) % steps == steps - 1
    obs = rng.standard_normal((rows, 4)).astype(np.float32)
    return {"obs": obs, "action": (obs[:, 0] > 0).astype(int), "reward": np.ones(rows), "terminated": ends}


def saved(path: Path, **columns: np.ndarray) -> Path:
    np.savez(path, **columns)
    return path


# ---------------------------------------------------------------- reading


def test_npz_rows_and_episodes(tmp_path: Path) -> None:
    found = recordings.read(saved(tmp_path / "a.npz", **arrays(3, 10)))
    assert (found.rows, found.episodes) == (30, [(0, 10), (10, 20), (20, 30)])
    assert found.returns.tolist() == [10.0, 10.0, 10.0]
    assert found.first.sum() == 3
    assert found.spec is None
    assert found.has_rewards


def test_the_last_episode_ends_with_the_file(tmp_path: Path) -> None:
    columns = arrays(2, 5)
    columns["terminated"] = np.zeros(10, bool)
    found = recordings.read(saved(tmp_path / "a.npz", **columns))
    assert found.episodes == [(0, 10)]
    assert found.truncated[-1]
    assert not found.terminated.any()


@pytest.mark.parametrize("name", ["demos_minari_cartpole", "demos_minari_dict"])
def test_minari_fixtures_read_as_its_own_reader_does(name: str) -> None:
    ours, theirs = recordings.read(FIXTURES / name), minari.MinariDataset(FIXTURES / name / "data")
    assert ours.rows == theirs.total_steps
    assert len(ours.episodes) == theirs.total_episodes
    for (begin, end), episode in zip(ours.episodes, theirs, strict=True):
        seen = episode.observations
        if isinstance(seen, dict):
            assert isinstance(ours.obs, dict)
            for key, column in seen.items():
                assert np.array_equal(ours.obs[key][begin:end], column[:-1])
        else:
            assert np.array_equal(ours.obs[begin:end], seen[:-1])
        assert ours.action is not None
        assert np.array_equal(ours.action[begin:end], episode.actions)
        assert ours.returns[ours.episodes.index((begin, end))] == episode.rewards.sum()
    assert ours.spec is not None
    assert ours.spec.action_space == theirs.action_space


def test_what_is_written_opens_in_minari(tmp_path: Path) -> None:
    space = gym.spaces.Dict(
        {"image": gym.spaces.Box(0, 255, (6, 6, 3), np.uint8), "goal": gym.spaces.Discrete(3, start=1)}
    )
    rng = np.random.default_rng(1)
    obs = {"image": rng.integers(0, 256, (20, 6, 6, 3)).astype(np.uint8), "goal": rng.integers(1, 4, 20)}
    ends = np.isin(np.arange(20), (8, 19))
    action = rng.uniform(-1, 1, (20, 2)).astype(np.float32)
    spec = Spec(space, gym.spaces.Box(-1, 1, (2,), np.float32))
    made = recordings.checked("own", "", obs, action, np.arange(20.0), ends, None, spec)
    minari_layout.write(made, tmp_path / "set", spec, "limbeck/own-v0")
    theirs = minari.MinariDataset(tmp_path / "set" / "data")
    assert (theirs.total_episodes, theirs.total_steps, theirs.id) == (2, 20, "limbeck/own-v0")
    first = next(iter(theirs))
    assert np.array_equal(first.observations["image"][:9], obs["image"][:9])
    assert np.array_equal(first.actions, action[:9])
    again = recordings.read(tmp_path / "set")
    assert isinstance(again.obs, dict)
    assert np.array_equal(again.obs["image"], obs["image"])
    assert np.array_equal(again.terminated, made.terminated)
    assert again.spec is not None
    assert again.spec.observation_space == space
    with pytest.raises(StorageError, match="holds a data set already"):
        minari_layout.write(made, tmp_path / "set", spec, "limbeck/own-v0")


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"obs": None}, "has no observations"),
        ({"action": np.arange(3)}, "rows; they must have one and the same number"),
        ({"reward": np.full(80, np.nan)}, "reward is float64 or holds numbers that are not finite"),
        ({"action": np.array([{}] * 80, dtype=object)}, "holds objects"),
    ],
)
def test_bad_npz_is_one_clear_line(tmp_path: Path, change: dict[str, np.ndarray | None], words: str) -> None:
    columns = {k: v for k, v in {**arrays(), **change}.items() if v is not None}
    np.savez(tmp_path / "a.npz", allow_pickle=True, **columns)
    with pytest.raises(InputError, match=words):
        recordings.read(tmp_path / "a.npz")


def test_a_bomb_is_refused_before_it_unpacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", obs=np.zeros((2**20, 4), np.float32))
    assert (tmp_path / "bomb.npz").stat().st_size < 2**16
    monkeypatch.setattr(records, "MAX_BYTES", 2**22)
    with pytest.raises(InputError, match="unpacks to 16,777,"):
        recordings.read(tmp_path / "bomb.npz")


def hostile(folder: Path, change: str, secret: Path) -> None:
    shutil.copytree(MINARI, folder)
    path = folder / "data" / "main_data.hdf5"
    with h5py.File(path, "a") as file:
        group = file["episode_0"]
        rows = len(group["actions"])
        del group["actions"]
        match change:
            case "external storage":
                group.create_dataset("actions", (rows,), np.int64, external=[(str(secret), 0, rows * 8)])
            case "external link":
                with h5py.File(secret, "w") as other:
                    other["actions"] = np.zeros(rows, np.int64)
                group["actions"] = h5py.ExternalLink(str(secret), "actions")
            case "soft link":
                group["actions"] = h5py.SoftLink("/episode_1/actions")
            case "bomb":
                group.create_dataset("actions", (2**37,), np.int64, chunks=(2**20,))
            case "virtual":
                layout = h5py.VirtualLayout((rows,), np.int64)
                layout[:] = h5py.VirtualSource(str(secret), "actions", (rows,))
                group.create_virtual_dataset("actions", layout)


@pytest.mark.parametrize("change", ["external storage", "external link", "soft link", "bomb", "virtual"])
def test_a_data_set_reads_nothing_but_itself(tmp_path: Path, change: str) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"SECRET!!" * 4096)
    hostile(tmp_path / "set", change, secret)
    refusal, words = (InputError, "declares") if change == "bomb" else (UnsafeError, "another file|link to somewhere else")
    with pytest.raises(refusal, match=words):
        recordings.read(tmp_path / "set")


def test_the_control_external_storage_leaks_to_a_plain_reader(tmp_path: Path) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"SECRET!!" * 4096)
    hostile(tmp_path / "set", "external storage", secret)
    with h5py.File(tmp_path / "set" / "data" / "main_data.hdf5") as file:
        assert b"SECRET" in file["episode_0/actions"][()].tobytes()


def _mutated(content: bytes, at: int, how: int, value: int) -> bytes:
    at %= len(content)
    if how == 0:
        return content[:at]
    if how == 1:
        return content[:at] + bytes([value]) + content[at + 1 :]
    return content[:at] + content[at + 1 + value :]


@settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(at=st.integers(0, 2**24), how=st.integers(0, 2), value=st.integers(0, 255), which=st.booleans())
def test_mutated_recordings_end_in_one_line(tmp_path: Path, at: int, how: int, value: int, which: bool) -> None:
    folder = tmp_path / "set"
    if which:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(MINARI, folder)
        path = folder / "data" / ("metadata.json" if at % 5 == 0 else "main_data.hdf5")
        path.write_bytes(_mutated(path.read_bytes(), at, how, value))
        target = folder
    else:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays(2, 6))
        target = tmp_path / "a.npz"
        target.write_bytes(_mutated(buffer.getvalue(), at, how, value))
    before = set(os.listdir(tmp_path))
    with contextlib.suppress(LimbeckError):
        recordings.read(target)
    assert set(os.listdir(tmp_path)) == before


# ---------------------------------------------------------------- as a task, as a teacher


def test_parts_of_recordings_are_disjoint(tmp_path: Path) -> None:
    records = recordings.read(saved(tmp_path / "a.npz", **arrays(20, 10)))
    task = tasks.from_recordings(records, recordings.spec_of(records))
    parts = {
        stage: {task.episode(seeding.episode_seed(3, stage, i)) for i in range(200)}
        for stage in ("collect", "select", "proof")
    }
    assert not parts["collect"] & parts["select"]
    assert not parts["collect"] & parts["proof"]
    assert not parts["select"] & parts["proof"]
    assert len(parts["proof"]) == task.proof_episodes
    rows = set(task.train_rows.tolist())
    assert not any(set(range(*episode)) & rows for episode in parts["proof"] | parts["select"])


def test_agreement_of_continuous_actions() -> None:
    bounded = np.array([True, False])
    rows = agreement(np.array([[0.0, 1.0]]), np.array([[1.0, 1.0]]), np.array([2.0, 1.0], np.float32), bounded)
    assert rows.tolist() == [pytest.approx((0.5 + 1.0) / 2)]


def test_demonstrations_answer_where_somebody_has_been(tmp_path: Path) -> None:
    columns = arrays(4, 10)
    columns["obs"][1] = columns["obs"][0]
    columns["action"][:2] = [0, 1]
    teacher = teachers.load(saved(tmp_path / "a.npz", **columns))
    output = teacher.policy(columns["obs"][:3], {}, np.ones(3, bool))
    assert np.allclose(output.params[:2], np.log(0.5))
    assert output.params[2].argmax() == columns["action"][2]
    with pytest.raises(InputError, match="a state they never saw"):
        teacher.policy(columns["obs"][:1] + 1, {}, np.ones(1, bool))


def test_labels_of_a_teacher_with_memory_follow_the_episodes(tmp_path: Path) -> None:
    records = recordings.read(saved(tmp_path / "a.npz", **arrays(5, 7)))
    space = Spec(BOX, gym.spaces.Discrete(2), "toy")

    class Counting:
        """Says how many steps of the episode it has seen."""

        spec, head = space, teachers.load(lambda o: o[:, :2], space).policy.head

        def initial_state(self, batch: int) -> dict[str, np.ndarray]:
            return {"steps": np.zeros((batch, 1), np.float32)}

        def __call__(self, obs: np.ndarray, state: dict[str, np.ndarray], first: np.ndarray):  # type: ignore[no-untyped-def]
            from limbeck.contracts import PolicyOutput

            steps = np.where(first[:, None], 0, state["steps"]) + 1
            return PolicyOutput(np.concatenate([0 * steps, steps], axis=1).astype(np.float32), {"steps": steps})

    task = tasks.from_recordings(records, space)
    found = collection.recorded(task, records, np.arange(7, 21), Counting())
    seen = found.columns["teacher/params"]
    assert np.allclose((seen[:, 1] - seen[:, 0]).reshape(2, 7), np.arange(1, 8))
    assert found.env_steps == 0
    assert found.teacher_queries == 14


SMALL = (
    "imitate.rounds=4",
    "imitate.gradient_steps=60",
    "race.final_episodes=4",
    "verify.episodes=4",
    "verify.random_episodes=4",
)


def test_without_an_environment_nothing_is_proved(tmp_path: Path) -> None:
    teacher = str(FIXTURES / "cartpole_ppo_sb3.zip")
    options = [*SMALL, "imitate.gradient_steps=150"]
    result = limbeck.distill(teacher, students=["mlp:8", "gru:4"], data=MINARI, out=tmp_path / "run", options=options)
    assert [m.proof.verdict for m in result.members] == ["not proved"] * 2
    assert all(m.proof.reason.startswith("no environment") for m in result.members)
    assert result.members[0].proof.fidelity["agreement"] > 0.8
    assert result.bill.collection_steps == result.bill.verify_steps == result.bill.proof_steps == 0
    assert "no environment" in (tmp_path / "run" / "report.html").read_text()


def test_demonstrations_are_imitated_and_judged_in_the_environment(tmp_path: Path) -> None:
    options = [*SMALL, "polish.enabled=false"]
    result = limbeck.distill(
        str(MINARI), "CartPole-v1", ["mlp:8"], tmp_path / "run", accept_teacher=True, options=options
    )
    proof = result.members[0].proof
    assert proof.verdict == "not proved"
    assert "recording" in proof.reason
    assert proof.retention > 0.4  # a noisy rule, ten steps of data in a hundred random
    assert result.bill.collection_steps == 0
    assert result.bill.proof_steps > 0


def test_offline_data_with_an_environment_is_proved_against_the_teacher(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    limbeck.record(str(FIXTURES / "cartpole_ppo_sb3.zip"), "CartPole-v1", folder, episodes=12, mode="sampled")
    options = [*SMALL, "polish.enabled=false", "prove.max_episodes=200", "imitate.gradient_steps=150"]
    result = limbeck.distill(
        str(FIXTURES / "cartpole_ppo_sb3.zip"),
        "CartPole-v1",
        ["mlp:16"],
        tmp_path / "run",
        data=folder,
        options=options,
    )
    assert result.members[0].proof.verdict == "proved"
    assert result.bill.collection_steps == 0
    assert result.bill.teacher_queries == recordings.read(folder).rows


def test_recipes_need_an_environment_or_recordings() -> None:
    with pytest.raises(InputError, match="neither env nor data"):
        limbeck.distill(str(FIXTURES / "cartpole_ppo_sb3.zip"))


def test_metadata_that_states_no_spaces(tmp_path: Path) -> None:
    shutil.copytree(MINARI, tmp_path / "set")
    path = tmp_path / "set" / "data" / "metadata.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({**meta, "observation_space": json.dumps({"type": "Graph"})}))
    with pytest.raises(InputError, match="states no spaces that are read here"):
        recordings.read(tmp_path / "set")
