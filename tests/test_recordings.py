"""Recordings: read from .npz and Minari's layout, written back, damaged, hostile; imitated with and without an environment."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from end_to_end_cases import no_film
from minari.data_collector import EpisodeBuffer
from PIL import Image

import limbeck
from limbeck import collection, recordings, seeding, spaces, tasks, teachers
from limbeck.contracts import PolicyOutput, Spec
from limbeck.errors import InputError, LimbeckError, StorageError, UnsafeError
from limbeck.recordings import minari_layout, records
from limbeck.reporting.words import headline
from limbeck.tasks import recorded
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
        ({"reward": np.full(80, np.nan)}, "reward holds numbers that are not finite"),
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
    with pytest.raises(InputError, match="to 16,777,"):
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
    refusal, words = (
        (InputError, "declares") if change == "bomb" else (UnsafeError, "another file|link to somewhere else")
    )
    with pytest.raises(refusal, match=words):
        recordings.read(tmp_path / "set")


def test_the_control_external_storage_leaks_to_a_plain_reader(tmp_path: Path) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"SECRET!!" * 4096)
    hostile(tmp_path / "set", "external storage", secret)
    with h5py.File(tmp_path / "set" / "data" / "main_data.hdf5") as file:
        assert b"SECRET" in file["episode_0/actions"][()].tobytes()


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

        def __call__(self, obs: np.ndarray, state: dict[str, np.ndarray], first: np.ndarray):
            from limbeck.contracts import PolicyOutput

            steps = np.where(first[:, None], 0, state["steps"]) + 1
            return PolicyOutput(np.concatenate([0 * steps, steps], axis=1).astype(np.float32), {"steps": steps})

    task = tasks.from_recordings(records, space)
    found = collection.recorded(task, records, np.arange(7, 21), Counting())
    seen = found.columns["teacher/params"]
    assert np.allclose((seen[:, 1] - seen[:, 0]).reshape(2, 7), np.arange(1, 8))
    assert found.env_steps == 0
    assert found.teacher_queries == 14


@pytest.fixture(autouse=True)
def unfilmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.reporting.side_by_side", no_film)


SMALL = (
    "imitate.rounds=4",
    "imitate.gradient_steps=60",
    "race.final_episodes=4",
    "verify.episodes=4",
    "verify.random_episodes=4",
    "report.gallery=off",
)


def test_without_an_environment_nothing_is_proved(tmp_path: Path) -> None:
    teacher = str(FIXTURES / "cartpole_ppo_sb3.zip")
    options = [*SMALL, "imitate.rounds=2"]
    result = limbeck.distill(teacher, students=["mlp:8", "gru:4"], data=MINARI, out=tmp_path / "run", options=options)
    assert [m.proof.verdict for m in result.members] == ["not proved"] * 2
    assert all(m.proof.reason.startswith("no environment") for m in result.members)
    assert result.members[0].proof.fidelity["agreement"] > 0.8
    assert result.bill.collection_steps == result.bill.verify_steps == result.bill.proof_steps == 0
    assert "no environment" in (tmp_path / "run" / "report.html").read_text()
    assert "Nothing is proved" in headline(result)
    assert "no environment" in headline(result)


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


# ---------------------------------------------------------------- clumsy and hostile hands


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"obs": np.zeros((80, 0), np.float32)}, "holds no number"),
        ({"action": np.zeros((80, 0), int)}, "holds no number"),
        ({"reward": np.zeros((80, 3))}, "its reward has the shape (80, 3); it must have one number per row"),
        ({"obs": np.full((80, 4), 1e300)}, "not finite in single precision"),
        ({"obs": np.zeros((80, 4), np.longdouble)}, "at most 64 bits"),
        ({"action": np.full(80, -3)}, "actions go from -3 to -3. Allowed for choices"),
        ({"action": np.full(80, 10**9)}, "actions go from 1000000000 to 1000000000."),
        ({"action": np.full(80, 2**63, np.uint64)}, "actions go from 9223372036854775808"),
    ],
)
def test_arrays_that_no_teacher_can_be_made_of(tmp_path: Path, change: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(InputError) as caught:
        teachers.inspect(saved(tmp_path / "a.npz", **{**arrays(), **change}))
    assert words in str(caught.value)


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("name", ["a.npz", "metadata.json", "main_data.hdf5"])
def test_what_never_ends_is_not_read(tmp_path: Path, name: str, kind: str) -> None:
    data = Path(shutil.copytree(MINARI, tmp_path / "set")) / "data"
    place, given_ = (tmp_path / name, tmp_path / name) if name == "a.npz" else (data / name, tmp_path / "set")
    place.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to("/dev/zero")
    with pytest.raises(InputError):
        recordings.read(given_)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("action_space", {"type": "Discrete", "n": 10**22}, "choices, at most"),
        ("action_space", {"type": "Discrete", "n": 10**12}, "choices, at most"),
        ("observation_space", {"type": "Dict", "subspaces": {}}, "there is nothing to see"),
        ("observation_space", {"type": "Text"}, "there is nothing to see"),
        ("observation_space", {"type": "Discrete", "n": 3}, "do not fit the spaces they state: observations (4,) against ()"),
    ],
)  # fmt: skip
def test_spaces_that_a_data_set_cannot_have(tmp_path: Path, key: str, value: dict[str, object], words: str) -> None:
    folder = Path(shutil.copytree(MINARI, tmp_path / "set"))
    meta = json.loads((folder / "data" / "metadata.json").read_text())
    (folder / "data" / "metadata.json").write_text(json.dumps(meta | {key: json.dumps(value)}))
    with pytest.raises(InputError) as caught:
        recordings.read(folder)
    assert words in str(caught.value)


def test_episodes_of_different_widths(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(MINARI, tmp_path / "set"))
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        del file["episode_0/observations"]
        file["episode_0/observations"] = np.zeros((90, 7), np.float32)
    with pytest.raises(InputError, match="is damaged"):
        recordings.read(folder)


def test_a_data_set_names_no_folder_of_its_own(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(MINARI, tmp_path / "set"))
    meta = json.loads((folder / "data" / "metadata.json").read_text())
    (folder / "data" / "metadata.json").write_text(json.dumps(meta | {"dataset_id": "../\x1b[31m" + "x" * 4000}))
    assert recordings.read(folder).name == "31m" + "x" * 77


def test_scalar_observations_make_a_round_trip_in_a_policy_file() -> None:
    space = gym.spaces.Box(-1.0, 1.0, (), np.float32)
    assert spaces.from_json(spaces.to_json(space)) == space


# ---------------------------------------------------------------- Minari's layouts


def data_set(folder: Path, seen: dict[str, object], observations: list[object], jpeg: bool = False) -> Path:
    """A data set of episodes with 8 steps each and no end flags, as a stranger's program may write it."""
    (folder / "data").mkdir(parents=True)
    with h5py.File(folder / "data" / "main_data.hdf5", "w") as file:
        for i, column in enumerate(observations):
            group = file.create_group(f"episode_{i}")
            if callable(column):
                column(group)
            else:
                group["observations"] = column
            group["actions"], group["rewards"] = np.arange(8) % 2, np.ones(8)
            group["terminations"] = group["truncations"] = np.zeros(8, bool)
    meta = {"total_episodes": len(observations), "jpeg_encoding": jpeg, "observation_space": json.dumps(seen)}
    action = json.dumps({"type": "Discrete", "n": 2})
    (folder / "data" / "metadata.json").write_text(json.dumps(meta | {"action_space": action}))
    return folder


def image_space(*shape: int) -> dict[str, object]:
    low, high = np.zeros(shape, int).tolist(), np.full(shape, 255).tolist()
    return {"type": "Box", "dtype": "uint8", "shape": shape, "low": low, "high": high}


def jpeg_of(pixels: np.ndarray, quality: int = 75) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def files_of(contents: list[np.ndarray]) -> Callable[[h5py.Group], None]:
    def write(group: h5py.Group) -> None:
        column = group.create_dataset("observations", (len(contents),), h5py.vlen_dtype(np.uint8))
        for i, content in enumerate(contents):
            column[i] = content

    return write


VECTOR = {"type": "Box", "dtype": "float32", "shape": [3], "low": [-9] * 3, "high": [9] * 3}


@pytest.mark.parametrize("shape", [(32, 40, 3), (32, 40), (7, 7, 3)])
def test_images_read_as_minari_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    space = gym.spaces.Box(0, 255, shape, np.uint8)
    theirs = by_minari(tmp_path, monkeypatch, space, np.random.default_rng(0).integers(0, 256, (9, *shape), np.uint8))
    ours = recordings.read(Path(theirs.storage.data_path))
    assert np.array_equal(ours.obs, theirs[0].observations[:-1])


def by_minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: gym.Space, seen: object) -> minari.MinariDataset:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    flags = [False] * 8
    episode = EpisodeBuffer(
        id=0, observations=seen, actions=np.arange(8) % 2, rewards=[1.0] * 8, terminations=flags, truncations=flags
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about authors and code links that are not given
        return minari.create_dataset_from_buffers(
            "limbeck/made-v0", [episode], observation_space=space, action_space=gym.spaces.Discrete(2)
        )


def test_tuples_become_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = gym.spaces.Tuple([gym.spaces.Discrete(9), gym.spaces.Box(-1, 1, (2,), np.float32)])
    space = gym.spaces.Tuple([gym.spaces.Discrete(9), gym.spaces.Dict({"a": pair})])
    vectors = np.random.default_rng(0).uniform(-1, 1, (9, 2)).astype(np.float32)
    theirs = by_minari(tmp_path, monkeypatch, space, (np.arange(9), {"a": (np.arange(9)[::-1], vectors)}))
    ours = recordings.read(Path(theirs.storage.data_path))
    assert isinstance(ours.obs, dict)
    assert {key: column.tolist() for key, column in ours.obs.items()} == {
        "0": [*range(8)], "1/a/0": [*range(8, 0, -1)], "1/a/1": vectors[:8].tolist(),
    }  # fmt: skip
    assert ours.spec is not None
    assert ours.spec.observation_space == tasks.border.simple_space(space)[0]


def test_two_parts_of_one_name_are_refused(tmp_path: Path) -> None:
    inner = {"type": "Dict", "subspaces": {"b": VECTOR}}
    space = {"type": "Dict", "subspaces": {"a/b": VECTOR, "a": inner}}
    with pytest.raises(InputError, match="two parts are called a/b"):
        recordings.read(data_set(tmp_path / "set", space, [np.zeros((9, 3))]))


def test_episodes_without_end_flags_end(tmp_path: Path) -> None:
    found = recordings.read(data_set(tmp_path / "set", VECTOR, [np.zeros((9, 3), np.float32)] * 5))
    assert found.episodes == [(i, i + 8) for i in range(0, 40, 8)]
    assert found.returns.tolist() == [8.0] * 5


def test_an_image_is_as_large_as_stated(tmp_path: Path) -> None:
    large = jpeg_of(np.zeros((2000, 2000, 3), np.uint8), quality=1)
    folder = data_set(tmp_path / "set", image_space(4, 4, 3), [files_of([large] * 9)], jpeg=True)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"an image of \(2000, 2000, 3\) where \(4, 4, 3\) is stated"):
            recordings.read(folder)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_images_are_counted_before_they_are_read(tmp_path: Path) -> None:
    def write(group: h5py.Group) -> None:
        group.create_dataset("observations", (2**30,), h5py.vlen_dtype(np.uint8), chunks=(2**10,))

    with pytest.raises(InputError, match="unpacks to more than"):
        recordings.read(data_set(tmp_path / "set", image_space(4, 4, 3), [write], jpeg=True))


def test_one_image_referred_to_a_thousand_times(tmp_path: Path) -> None:
    noise = jpeg_of(np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8), quality=95)
    contents = [noise, *[np.zeros(1, np.uint8)] * 999]
    folder = data_set(tmp_path / "set", image_space(128, 128, 3), [files_of(contents)], jpeg=True)
    path = folder / "data" / "main_data.hdf5"
    with h5py.File(path) as file:
        at = file["episode_0/observations"].id.get_offset()
    content = bytearray(path.read_bytes())
    content[at : at + 16_000] = bytes(content[at : at + 16]) * 1000
    path.write_bytes(content)
    with pytest.raises(InputError, match="images declare more bytes than are there"):
        recordings.read(folder)


def test_one_column_under_a_thousand_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = data_set(tmp_path / "set", VECTOR, [np.zeros((2**18, 3), np.float32)])
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        for i in range(1, 1000):
            file[f"episode_{i}"] = file["episode_0"]
    meta = json.loads((folder / "data" / "metadata.json").read_text())
    (folder / "data" / "metadata.json").write_text(json.dumps(meta | {"total_episodes": 1000}))
    monkeypatch.setattr(minari_layout, "FREE", 2**23)
    monkeypatch.setattr(minari_layout, "MAX_RATIO", 1)
    with pytest.raises(InputError, match="unpacks to more than the 8,388,608 bytes"):
        recordings.read(folder)


def test_a_column_in_the_place_of_an_episode_is_not_searched(tmp_path: Path) -> None:
    folder = data_set(tmp_path / "set", VECTOR, [np.zeros((9, 3), np.float32)])
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        del file["episode_0"]
        file.create_dataset("episode_0", (2**45,), np.int64, chunks=(2**10,))
    with pytest.raises(InputError, match="rewards is missing"):
        recordings.read(folder)


@pytest.mark.parametrize(
    "action",
    [
        {"type": "MultiBinary", "n": [2**32, 2**32]},
        {"type": "MultiBinary", "n": [2**20, 2**20]},
        {"type": "MultiDiscrete", "nvec": [2**62, 2**62, 2**62, 2**62], "start": [0] * 4},
        {"type": "MultiDiscrete", "nvec": [2**70, 2], "start": [0, 0]},
        {"type": "MultiDiscrete", "nvec": [[2, -(10**9)], [10**9, 2]], "start": [[0, 0], [0, 0]]},
        {"type": "Discrete", "n": 1e400},
        {"type": "Box", "dtype": "float32", "shape": [2**40], "low": 0, "high": 1},
        {"type": "Box", "dtype": "O", "shape": [1], "low": [0], "high": [1]},
        {"type": "Box", "dtype": "float32", "shape": [1], "low": [float("nan")], "high": [1]},
    ],
)
def test_counts_that_overflow_are_refused(tmp_path: Path, action: dict[str, object]) -> None:
    folder = data_set(tmp_path / "set", VECTOR, [np.zeros((9, 3), np.float32)])
    meta = json.loads((folder / "data" / "metadata.json").read_text())
    (folder / "data" / "metadata.json").write_text(json.dumps(meta | {"action_space": json.dumps(action)}))
    with pytest.raises(InputError, match="states no spaces that are read here"):
        recordings.read(folder)


def test_the_hash_covers_both_files(tmp_path: Path) -> None:
    folder = data_set(tmp_path / "set", VECTOR, [np.zeros((9, 3), np.float32)])
    found = [recordings.read(folder).sha256]
    meta = (folder / "data" / "metadata.json").read_text()
    (folder / "data" / "metadata.json").write_text(meta + " ")
    found.append(recordings.read(folder).sha256)
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        file["episode_0/rewards"][0] = 5
    found.append(recordings.read(folder).sha256)
    assert len(set(found)) == 3


@pytest.mark.parametrize("key", ["action", "reward", "terminated"])
def test_an_entry_called_as_a_column_is_checked_like_any(tmp_path: Path, key: str) -> None:
    columns = arrays()
    wrong = columns.pop("obs")
    wrong[0, 0] = np.nan
    with pytest.raises(InputError, match=f"its obs/{key} holds numbers that are not finite"):
        recordings.read(saved(tmp_path / "a.npz", **columns, **{f"obs/{key}": wrong}))


# ---------------------------------------------------------------- few episodes


@pytest.mark.parametrize(("episodes", "steps"), [(1, 400), (2, 37), (3, 11), (3, 300), (1, 32)])
def test_few_episodes_are_cut_inside_and_kept_apart(tmp_path: Path, episodes: int, steps: int) -> None:
    found = recordings.read(saved(tmp_path / "a.npz", **arrays(episodes, steps)))
    task = tasks.from_recordings(found, recordings.spec_of(found))
    assert "stretches of the same episodes" in task.notes[-1]
    parts = [
        {task.episode(seeding.episode_seed(0, stage, i)) for i in range(400)}
        for stage in ("collect", "select", "proof")
    ]
    owner = {row: number for number, part in enumerate(parts) for begin, end in part for row in range(begin, end)}
    assert set(owner.values()) == {0, 1, 2}
    gap = 10 if steps == 400 else 1
    for begin, end in set().union(*parts):
        assert begin // steps == (end - 1) // steps  # no stretch crosses an end
        assert end > begin
    for row, number in owner.items():
        near = [r for r in range(row - gap, row + gap + 1) if r // steps == row // steps]
        assert all(owner.get(r, number) == number for r in near if steps != 400 or abs(r - row) <= 5)
    assert len(owner) > 0.5 * episodes * steps


def test_a_memory_starts_afresh_where_a_stretch_begins(tmp_path: Path) -> None:
    found = recordings.read(saved(tmp_path / "a.npz", **arrays(2, 100)))
    task = tasks.from_recordings(found, Spec(BOX, gym.spaces.Box(0, 200, (1,), np.float32), "toy"))
    teacher = Counter(task.spec)
    right = collection.answers_of(teacher, task.records, task)
    labels = collection.recorded(task, task.records, task.train_rows, teacher)
    assert np.array_equal(right[task.train_rows], labels.columns["teacher/params"])
    for begin, end in task.episodes:
        assert right[begin:end, 0].tolist() == list(range(1, end - begin + 1))
    assert np.array_equal(labels.columns["first"], task.records.first[task.train_rows])


class Counter:
    """A teacher whose action is how many steps it has seen."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.head = spec, spaces.head_for(spec.action_space)

    def initial_state(self, batch: int) -> dict[str, np.ndarray]:
        return {"steps": np.zeros((batch, 1), np.float32)}

    def __call__(self, obs: np.ndarray, state: dict[str, np.ndarray], first: np.ndarray) -> PolicyOutput:
        steps = np.where(first[:, None], 0, state["steps"]).astype(np.float32) + 1
        return PolicyOutput(steps, {"steps": steps})


def test_too_few_steps_to_hold_some_out(tmp_path: Path) -> None:
    found = recordings.read(saved(tmp_path / "a.npz", **arrays(3, 10)))
    with pytest.raises(InputError, match=r"have 3 episodes of 30 steps\. Needed: 4 episodes, or 32 steps"):
        tasks.from_recordings(found, recordings.spec_of(found))


def test_the_spread_of_answers_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = recordings.read(saved(tmp_path / "a.npz", **arrays(5, 10)))
    spec = Spec(BOX, gym.spaces.Box(-np.inf, np.inf, (2,), np.float32), "toy")
    task = replace(tasks.from_recordings(found, spec), right=np.random.default_rng(0).normal(size=(50, 2)))
    calls, scale = [], recorded._scale
    monkeypatch.setattr(recorded, "_scale", lambda t: calls.append(0) or scale(t))
    lanes = task.lanes(2, lambda lane: seeding.episode_seed(0, "proof", lane))
    step = lanes.start()
    for _ in range(8):
        step = lanes.step(np.zeros((2, 2)))
    assert len(calls) == 1
    assert (step.reward > 0).all()


# ---------------------------------------------------------------- mutations

STRANGE = (
    None,
    -1,
    0,
    10**30,
    2**62,
    1.5,
    1e400,
    float("nan"),
    True,
    "",
    "x",
    "float32",
    [],
    [[]],
    {},
    [-1],
    [0, 2**40],
)


def mutated_bytes(rng: np.random.Generator, content: bytes) -> bytes:
    """One to three bytes changed, or a piece cut out, or the end cut off, or a piece written twice."""
    at, other = sorted(rng.integers(0, len(content) + 1, 2).tolist())
    match rng.integers(0, 6):
        case 0:
            return content[:at]
        case 1:
            return content[:at] + content[at + 1 + int(rng.integers(0, 16)) :]
        case 2:
            return content[:other] + content[at:]
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        changed[int(rng.integers(0, len(changed)))] = int(rng.choice([0, 1, 127, 255, rng.integers(0, 256)]))
    return bytes(changed)


def mutated_npz(rng: np.random.Generator, path: Path) -> None:
    """Damage to the archive, or to one array inside an archive that is in order."""
    columns = arrays(2, 20)
    if rng.random() < 0.5:
        columns["obs/action"] = columns.pop("obs")
    pieces = {}
    for key, value in columns.items():
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, value)
        pieces[key] = buffer.getvalue()
    inside = rng.random() < 0.6
    if inside:
        key = str(rng.choice(sorted(pieces)))
        pieces[key] = mutated_bytes(rng, pieces[key][:128]) + pieces[key][128:]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for key, piece in pieces.items():
            file.writestr(f"{key}.npy", piece)
    path.write_bytes(archive.getvalue() if inside else mutated_bytes(rng, archive.getvalue()))


def mutated_json(rng: np.random.Generator, value: Any) -> Any:
    """One value somewhere inside exchanged for a strange one."""
    if isinstance(value, str) and value.startswith("{"):
        return json.dumps(mutated_json(rng, json.loads(value)))
    if isinstance(value, (dict, list)) and value and rng.random() < 0.9:
        places = list(value) if isinstance(value, dict) else list(range(len(value)))
        place = places[int(rng.integers(0, len(places)))]
        made = dict(value) if isinstance(value, dict) else list(value)
        made[place] = mutated_json(rng, value[place])
        return made
    return STRANGE[int(rng.integers(0, len(STRANGE)))]


def small_set(folder: Path) -> Path:
    """Few numbers and every kind of column, so that most bytes are structure."""
    parts = {
        "type": "Tuple",
        "subspaces": [VECTOR, image_space(8, 8, 3), {"type": "MultiDiscrete", "nvec": [2, 3], "start": [0, 0]}],
    }
    frames = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), np.uint8)

    def write(group: h5py.Group) -> None:
        group.create_dataset("observations/_index_0", data=np.ones((9, 3), np.float32), compression="gzip")
        files_of([jpeg_of(frame) for frame in frames])(group.create_group("inner"))
        group.move("inner/observations", "observations/_index_1")
        group["observations/_index_2"] = np.zeros((9, 2), int)

    return data_set(folder, parts, [write] * 4, jpeg=True)


def mutated_set(rng: np.random.Generator, sound: Path, folder: Path) -> None:
    """Damage to the numbers' file, to the text of its description, or to one value of it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder)
    which = rng.random()
    path = folder / "data" / ("main_data.hdf5" if which < 0.5 else "metadata.json")
    if which < 0.7:
        path.write_bytes(mutated_bytes(rng, path.read_bytes()))
    else:
        path.write_text(json.dumps(mutated_json(rng, json.loads(path.read_text()))))


def used(path: Path) -> bool:
    """Whether the recordings can be read; what can be read must go on to be a task that plays, or end in one line."""
    try:
        found = recordings.read(path)
        spec = recordings.spec_of(found)
        task = tasks.from_recordings(found, spec)
        assert task.train_rows.max() < found.rows
        lanes = task.lanes(2, lambda lane: seeding.episode_seed(0, "proof", lane))
        spaces.flatten(lanes.start().obs, spec.observation_space)
        teachers.demonstrations.facts(found)
    except LimbeckError as error:
        if "\n" in str(error):
            raise AssertionError(f"more than one line: {error}") from error
        return False
    return True


def ends_in_one_line(path: Path, mutate: Callable[[np.random.Generator], None], seeds: range) -> int:
    """How many of the mutated files could be read; no file may be written, and little memory used."""
    peak, read = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for seed in seeds:
        mutate(np.random.default_rng(seed))
        before = sorted(os.listdir(path.parent))
        try:
            read += used(path)
        except Exception as error:
            raise AssertionError(f"mutation {seed} ended in {error!r}") from error
        assert sorted(os.listdir(path.parent)) == before
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 512 * 1024, "KiB"
    return read


MUTATIONS = [range(100), pytest.param(range(100, 10_000), marks=pytest.mark.slow)]


@pytest.mark.parametrize("seeds", MUTATIONS, ids=len)
def test_mutated_npz_files(tmp_path: Path, seeds: range) -> None:
    path = tmp_path / "a.npz"
    read = ends_in_one_line(path, lambda rng: mutated_npz(rng, path), seeds)
    assert 0.01 * len(seeds) < read < 0.9 * len(seeds)


@pytest.mark.parametrize("seeds", MUTATIONS, ids=len)
def test_mutated_data_sets(tmp_path: Path, seeds: range) -> None:
    sound, path = small_set(tmp_path / "sound"), tmp_path / "set"
    assert used(sound)
    read = ends_in_one_line(path, lambda rng: mutated_set(rng, sound, path), seeds)
    assert 0.01 * len(seeds) < read < 0.9 * len(seeds)
