"""What a run takes from its recipe: views, masks, recordings that must not change, modules that a folder may not import."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import limbeck
from limbeck import collection, rollout, seeding, settings, tasks, teachers
from limbeck.collection import Plan
from limbeck.contracts import View
from limbeck.errors import InputError, StorageError
from limbeck.stages import opening, views

TEACHER = str(Path(__file__).parents[1] / "fixtures" / "cartpole_ppo_sb3.zip")
QUICK = (
    "imitate.rounds=2",
    "imitate.gradient_steps=20",
    "race.final_episodes=4",
    "verify.episodes=4",
    "verify.random_episodes=4",
)


class Doors(gym.Env):
    """Four doors of which two are open; forbidden ones end the episode without reward."""

    observation_space = gym.spaces.Dict(
        {
            "open": gym.spaces.MultiBinary(4),
            "action_mask": gym.spaces.MultiBinary(4),
            "noise": gym.spaces.Box(-1, 1, (2,)),
        }
    )
    action_space = gym.spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 6
        return self._seen(), {}

    def step(self, action):
        allowed = bool(self.mask[int(action)])
        self.left -= 1
        return self._seen(), float(allowed), not allowed, self.left == 0, {}

    def _seen(self):
        self.mask = np.zeros(4, np.int8)
        self.mask[self.np_random.choice(4, 2, replace=False)] = 1
        noise = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return {"open": self.mask.copy(), "action_mask": self.mask.copy(), "noise": noise}


def always_first(obs):
    return np.tile(np.array([[3.0, 2.0, 1.0, 0.0]], np.float32), (len(obs["open"]), 1))


def recipe(**values):
    return settings.recipe_from({"teacher": "t", "env": "e", **values})


def test_a_teacher_that_never_saw_the_mask_acts_under_it() -> None:
    task = tasks.resolve(Doors)
    teacher = teachers.load(always_first, task.spec)
    seeds = [seeding.episode_seed(0, "verify", i) for i in range(20)]
    for mode in ("greedy", "sampled"):
        assert rollout.play(teacher.policy, task, seeds, mode=mode).returns.tolist() == [6.0] * 20
    assert any("mask" in note for note in teacher.info.notes)
    rows = collection.collect(task, teacher.policy, [], Plan(60, 4, "teacher", teacher_mode="sampled"), 0, 0).columns
    assert (rows["obs/action_mask"][np.arange(len(rows["executed"])), rows["executed"].reshape(-1)] == 1).all()


def test_students_of_a_masked_task_get_its_mask_and_the_teachers_entries() -> None:
    task = tasks.resolve(Doors)
    teacher = teachers.load(always_first, task.spec)
    assert views.student_view(recipe(), task, teacher).mask == "action_mask"
    assert views.student_view(recipe(teacher_keys=["open"]), task, teacher).keys == ("open",)
    assert views.student_view(recipe(teacher_keys=["open"], keys=["noise"]), task, teacher).keys == ("noise",)


def test_an_entry_that_only_has_the_name_of_a_mask_is_an_observation() -> None:
    class Odd(Doors):
        observation_space = gym.spaces.Dict(
            {"action_mask": gym.spaces.Box(-1, 1, (2,)), "open": gym.spaces.MultiBinary(4)}
        )

        def _seen(self):
            seen = super()._seen()
            return {"action_mask": seen["noise"], "open": seen["open"]}

    task = tasks.resolve(Odd)
    teacher = teachers.load(always_first, task.spec)
    assert views.student_view(recipe(), task, teacher) == View()


def test_members_of_an_ensemble_that_see_the_same_say_what_students_see() -> None:
    task = tasks.resolve("CartPole-v1", wrappers=("hide_velocity",))
    both = teachers.load([TEACHER, TEACHER], task.spec)
    assert views.student_view(recipe(), task, both).keys == ("observation",)


def recordings(path: Path, shift: float = 0.0) -> Path:
    rng = np.random.default_rng(1)
    obs = rng.uniform(-0.1, 0.1, (200, 4)).astype(np.float32) + np.float32(shift)
    np.savez(path, obs=obs, action=np.zeros(200, int), terminated=np.arange(200) % 20 == 19)
    return path


def test_recordings_that_changed_do_not_continue_a_run(tmp_path: Path) -> None:
    data = recordings(tmp_path / "data.npz")
    limbeck.distill(TEACHER, students=["linear"], data=data, out=tmp_path / "run", options=QUICK)
    recordings(data, shift=0.05)
    with pytest.raises(StorageError, match="data_sha256 differ"):
        limbeck.distill(TEACHER, students=["linear"], data=data, out=tmp_path / "run", options=QUICK)
    with pytest.raises(InputError, match="the recipe was made with"):
        limbeck.distill(tmp_path / "run" / "recipe.yaml", out=tmp_path / "again")


def test_runs_on_recordings_are_exported_again_and_say_that_nothing_can_be_proved(tmp_path: Path) -> None:
    data = recordings(tmp_path / "data.npz")
    result = limbeck.distill(TEACHER, students=["linear"], data=data, out=tmp_path / "run", options=QUICK)
    made = limbeck.export(tmp_path / "run", ["linear-s0"], ["numpy"])
    assert [artifact.target for artifact in made if artifact.target == "numpy"] == ["numpy"]
    with pytest.raises(InputError, match=r"no environment|cannot be proved|nothing"):
        limbeck.prove(f"{tmp_path / 'run'}:linear-s0")
    assert result.bill.teacher_queries > 200  # training rows, and every row's right answer


def test_exporting_a_strangers_run_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = recordings(tmp_path / "data.npz")
    limbeck.distill(TEACHER, students=["linear"], data=data, out=tmp_path / "run", options=QUICK)
    (tmp_path / "evil_for_test.py").write_text("open('CANARY', 'w').close()\ndef make():\n    pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = (tmp_path / "run" / "recipe.yaml").read_text()
    (tmp_path / "run" / "recipe.yaml").write_text(text.replace("env: null", "env: evil_for_test:make"))
    with pytest.raises(InputError, match="imports a module"):
        limbeck.export(tmp_path / "run", ["linear-s0"], ["numpy"])
    (tmp_path / "run" / "recipe.yaml").write_text(text.replace(f"teacher: {TEACHER}", "teacher: evil_for_test:make"))
    with pytest.raises(InputError, match="imports a module"):
        limbeck.export(tmp_path / "run", ["linear-s0"], ["numpy"])
    assert not (tmp_path / "CANARY").exists()


def test_recording_takes_the_options_that_say_how_to_read_a_teacher(tmp_path: Path) -> None:
    made = limbeck.record(TEACHER, "CartPole-v1", tmp_path / "set", episodes=2, options=["task.wrappers=hide_velocity"])
    assert isinstance(made.obs, dict)
    assert set(made.obs) == {"observation", "visible"}
    with pytest.raises(InputError, match="does not apply to recording"):
        limbeck.record(TEACHER, "CartPole-v1", tmp_path / "other", options=["collect.slots=2"])


def test_opening_names_the_recordings() -> None:
    assert opening.identity_of_data(recipe(), tasks.resolve("CartPole-v1"), teachers.load(TEACHER)) is None
