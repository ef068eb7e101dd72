"""Teachers and tasks of every kind through a whole run: verified, imitated, exported, proved by the artefact."""

import json
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from end_to_end_cases import CARTPOLE, FAST, assert_sound, metrics, small
from end_to_end_cases import quiet_process as quiet_process
from gymnasium import spaces as gs
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import limbeck
from limbeck import blueprints, cli, distributions, storage, tasks, teachers
from limbeck.dataset import open_dataset
from limbeck.errors import InputError, StorageError
from limbeck.reporting import load_result

# ---------------------------------------------------------------- teachers of every kind


@pytest.fixture
def sb3_file(tmp_path):
    """Train a Stable-Baselines3 teacher for a moment: a real file, whatever it is worth."""

    def train(name, env_id, steps, **settings):
        import stable_baselines3 as sb3

        model = getattr(sb3, name)(
            "MlpPolicy", env_id, seed=0, device="cpu", policy_kwargs={"net_arch": [16]}, **settings
        )
        model.learn(steps)
        model.save(tmp_path / f"{name}.zip")
        return model, tmp_path / f"{name}.zip"

    return train


REPLAY = {"learning_starts": 64, "buffer_size": 1000, "batch_size": 32}


@pytest.mark.parametrize(
    ("name", "env_id", "settings", "kind", "measures"),
    [
        ("DQN", "CartPole-v1", REPLAY, "categorical", {"agreement", "weighted_agreement", "regret"}),
        ("SAC", "Pendulum-v1", REPLAY, "tanh", {"action_difference", "regret"}),
        pytest.param("A2C", "CartPole-v1", {"n_steps": 16}, "categorical", {"agreement", "kl"}, marks=pytest.mark.slow),
        pytest.param("TD3", "Pendulum-v1", REPLAY, "tanh", {"action_difference", "regret"}, marks=pytest.mark.slow),
    ],
)
def test_teachers_of_stable_baselines3(sb3_file, tmp_path, name, env_id, settings, kind, measures):
    model, path = sb3_file(name, env_id, 200, **settings)
    result = small(
        str(path),
        env_id,
        tmp_path / "run",
        ("mlp:16@2", "linear"),
        ["export.targets=c"],
        accept_teacher=True,
        retain=0.05,
    )
    assert_sound(tmp_path / "run", result, 768)
    assert result.teacher.algorithm.lower() == name.lower()
    assert set(result.members[0].proof.fidelity) == measures
    student = blueprints.load(tmp_path / "run" / "students" / result.members[0].name / "policy.safetensors")[0]
    assert student.head.kind == kind
    assert_labels_are_the_models_own(model, tmp_path / "run", result.task)
    losses = [row["loss"] for row in metrics(tmp_path / "run", "imitate") if row["member"] == result.members[0].name]
    assert losses[-1] < losses[0]


def assert_labels_are_the_models_own(model, folder, task):
    """The stored labels lead to the actions that the trained model itself predicts."""
    stored, teacher = (
        open_dataset(folder / "dataset", task),
        teachers.load(str(folder.parent / f"{type(model).__name__}.zip")),
    )
    labels = distributions.act(teacher.policy.head, stored.column("teacher/params"))
    predicted = model.predict(stored.column("obs"), deterministic=True)[0]
    assert np.allclose(labels, predicted, atol=2e-3)


def test_a_teacher_with_its_normaliser_beside_it(tmp_path):
    import stable_baselines3 as sb3
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    env = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]))
    model = sb3.PPO("MlpPolicy", env, n_steps=256, seed=0, device="cpu")
    model.learn(512)
    model.save(tmp_path / "swinger.zip")
    env.save(str(tmp_path / "vec_normalize.pkl"))
    result = small(
        tmp_path / "swinger.zip",
        "Pendulum-v1",
        tmp_path / "run",
        options=["export.targets=c"],
        accept_teacher=True,
        retain=0.05,
    )
    assert_sound(tmp_path / "run", result, 768)
    assert result.teacher.stated["normaliser_sha256"] == storage.sha256(tmp_path / "vec_normalize.pkl")
    stored = open_dataset(tmp_path / "run" / "dataset", "Pendulum-v1")
    predicted = model.predict(env.normalize_obs(stored.column("obs")), deterministic=True)[0]
    assert np.allclose(stored.column("teacher/params")[:, :1].clip(-2, 2), predicted, atol=1e-3)
    env.obs_rms.mean += 1.0
    env.save(str(tmp_path / "vec_normalize.pkl"))
    with pytest.raises(StorageError, match="teacher_sha256"):
        small(
            tmp_path / "swinger.zip",
            "Pendulum-v1",
            tmp_path / "run",
            options=["export.targets=c"],
            accept_teacher=True,
            retain=0.05,
        )
    with pytest.raises(StorageError, match="no longer what"):
        limbeck.prove(f"{tmp_path / 'run'}:{result.members[0].name}")
    (tmp_path / "vec_normalize.pkl").unlink()
    with pytest.raises(InputError, match="normaliser"):
        small(tmp_path / "swinger.zip", "Pendulum-v1", tmp_path / "without")


def test_a_torch_module_and_a_callable(tmp_path):
    module = torch.nn.Linear(4, 2)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[0.0, 0.0, -5.0, -5.0], [0.0, 0.0, 5.0, 5.0]]))
        module.bias.zero_()
    result = small(module, "CartPole-v1", tmp_path / "module", ["linear"], retain=0.5)
    assert_sound(tmp_path / "module", result, 768)
    assert result.teacher.format == "torch"
    assert result.members[0].proof.verdict == "proved", result.members[0].proof.reason
    with pytest.raises(InputError, match=r"Python object \(Linear\)"):
        limbeck.prove(f"{tmp_path / 'module'}:linear-s0")
    again = small(lean, "CartPole-v1", tmp_path / "callable", ["linear"], retain=0.5)
    assert again.teacher.format == "callable"
    assert again.members[0].proof.verdict == "proved", again.members[0].proof.reason


def lean(obs):
    """Push to where the pole falls."""
    return (obs[:, 2] + obs[:, 3] > 0).astype(np.int64)


RULE = """
import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv

gym.register("Shorter-v0", entry_point=CartPoleEnv, max_episode_steps=100)

def lean(obs):
    return (obs[:, 2] + obs[:, 3] > 0).astype(np.int64)
"""


def test_module_names_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    Path("own_things.py").write_text(RULE)
    command = [
        "distill",
        "own_things:lean",
        "--env",
        "own_things:Shorter-v0",
        "--students",
        "linear",
        "--retain",
        ".5",
        "--json",
    ]
    assert cli.main([*command, "--options", *FAST]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["members"][0]["proof"]["verdict"] == "proved"
    folder = next(Path("runs").iterdir())
    assert cli.main(["prove", f"{folder}:linear-s0", "--retain", ".6"]) == 0, "the run finds its teacher and task again"
    wanted = ["export", str(folder), "--members", "all", "--to", "numpy"]
    assert cli.main(wanted) == 2, "a folder's recipe imports nothing until somebody names the module"
    assert cli.main([*wanted, "--env", "own_things:Shorter-v0"]) == 0
    assert cli.main(["distill", "own_things:nothing", "--env", "CartPole-v1"]) == 2


def test_teach_then_distill(tmp_path, capsys):
    made = tmp_path / "made"
    assert cli.main(["teach", "CartPole-v1", "ppo", "--env-steps", "1024", "--out", str(made)]) == 0
    stated = json.loads((made / "teacher.json").read_text())["stated_return"]
    command = ["distill", str(made / "teacher.zip"), "--env", "CartPole-v1", "--students", "linear"]
    assert cli.main([*command, "--out", str(tmp_path / "run"), "--options", *FAST]) == 0
    result = load_result(tmp_path / "run")
    assert result.teacher.stated["return"]["mean"] == pytest.approx(stated)
    capsys.readouterr()
    assert cli.main([*command, "--expect", "9999", "--out", str(tmp_path / "no"), "--options", *FAST]) == 2
    assert "below the 9999 stated" in capsys.readouterr().err
    assert not (tmp_path / "no" / "students").exists()
    assert (
        cli.main([*command, "--expect", "9999", "--accept-teacher", "--out", str(tmp_path / "yes"), "--options", *FAST])
        == 0
    )
    assert "accepted although" in capsys.readouterr().err


# ---------------------------------------------------------------- tasks of every kind


@pytest.mark.parametrize(
    "mode",
    [
        AutoresetMode.NEXT_STEP,
        pytest.param(AutoresetMode.SAME_STEP, marks=pytest.mark.slow),  # their lanes: tests/tasks/test_border.py
        pytest.param(AutoresetMode.DISABLED, marks=pytest.mark.slow),
    ],
)
def test_a_ready_made_vector_environment(tmp_path, mode):
    env = SyncVectorEnv([lambda: gym.make("CartPole-v1", max_episode_steps=35)] * 6, autoreset_mode=mode)
    result = small(CARTPOLE, env, tmp_path / "run", ["mlp:8@2"], ["collect.steps=300"])
    stored = open_dataset(tmp_path / "run" / "dataset", result.task)
    assert_sound(tmp_path / "run", result, stored.rows)
    assert 900 - 3 * 6 < stored.rows <= 900, "six lanes, never over the budget"
    ended = stored.column("terminated") | stored.column("truncated")
    assert ended.sum() > 3
    first = stored.first()
    assert first[1:][ended[:-1]].all(), "what follows an end begins an episode"
    assert (np.abs(stored.column("obs")[:, 2]) < 0.2095).all(), "no observation after an end is stored"
    env.reset(seed=0)
    env.close()


def test_digits_with_hard_labels(tmp_path):
    from sklearn.linear_model import LogisticRegression

    task = tasks.resolve("digits")
    model = LogisticRegression(max_iter=300).fit(task.inputs[: task.train_rows], task.labels[: task.train_rows])
    teacher = teachers.load(lambda obs: model.predict_proba(obs), task.spec, kind="probabilities")
    options = [
        "collect.steps=512",
        "imitate.hard_weight=0.3",
        "imitate.gradient_steps=300",
        "prove.max_episodes=300",
        "race.final_episodes=100",
    ]
    result = small(teacher, "digits", tmp_path / "run", ["mlp:32", "linear"], options, retain=0.9)
    assert_sound(tmp_path / "run", result, 1536)
    assert open_dataset(tmp_path / "run" / "dataset", "digits").has("hard")
    assert [m.proof.verdict for m in result.members] == ["proved", "proved"], result.members[-1].proof
    with pytest.raises(InputError, match="hard labels"):
        small(CARTPOLE, "CartPole-v1", tmp_path / "none", options=["imitate.hard_weight=0.3"])


class Parcel(gym.Env):
    """A Dict observation and two factors to choose: where to, and how fast. `secret` tells the answer, `seen` the same in noise-free numbers."""

    observation_space = gs.Dict({"secret": gs.MultiDiscrete([3, 2]), "seen": gs.Box(-1, 1, (2,), np.float32), "other": gs.Box(0, 255, (2, 2), np.uint8)})  # fmt: skip
    action_space = gs.MultiDiscrete([3, 2])

    def _look(self):
        x = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        self.answer = np.array([np.digitize(x[0], (-0.33, 0.33)), x[1] > 0], np.int64)
        return {"secret": self.answer, "seen": x, "other": self.np_random.integers(0, 255, (2, 2)).astype(np.uint8)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._look(), {}

    def step(self, action):
        self.t += 1
        reward = float((action == self.answer).mean())
        return self._look(), reward, False, self.t == 10, {}


def test_dict_observations_and_several_discrete_actions(tmp_path):
    result = small(
        lambda obs: obs["secret"],
        Parcel,
        tmp_path / "run",
        ["mlp:16"],
        ["imitate.gradient_steps=300"],
        keys=("seen",),
        retain=0.8,
    )
    assert_sound(tmp_path / "run", result, 768)
    assert result.members[0].proof.verdict == "proved", result.members[0].proof.reason
    assert result.members[0].proof.played_by == "c"
    student = blueprints.load(tmp_path / "run" / "students" / "mlp-16-s0" / "policy.safetensors")[0]
    assert student.view.keys == ("seen",)
    assert student.layers[0].weight.shape == (2, 16)
    with pytest.raises(InputError, match="sen"):
        small(lambda obs: obs["secret"], Parcel, tmp_path / "wrong", ["mlp:16"], keys=("sen",))


def test_positions_with_a_history_stand_in_for_speeds(tmp_path, capsys):
    """Cart and pole positions alone do not tell where they move; three of them in a row do."""
    task = {"teacher": CARTPOLE, "env": "CartPole-v1", "task": {"kwargs": {"max_episode_steps": 150}}}
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(task))
    common = ["distill", str(tmp_path / "short.yaml"), "--students", "mlp:32x32", "--indices", "0", "2", "--retain", ".7", "--json", "--options",
              *FAST, "collect.steps=600", "imitate.rounds=5", "imitate.gradient_steps=250", "imitate.batch=256", "export.targets=c", "report.gallery=off"]  # fmt: skip
    assert cli.main([*common, "--history", "3", "--out", str(tmp_path / "three")]) == 0
    three = json.loads(capsys.readouterr().out)["members"][0]
    assert cli.main([*common, "--out", str(tmp_path / "one")]) == 0
    one = json.loads(capsys.readouterr().out)["members"][0]
    assert three["proof"]["verdict"] == "proved", three["proof"]["reason"]
    assert one["proof"]["verdict"] == "not proved", "a single frame is blind to speed"
    assert three["parameters"] - one["parameters"] == 4 * 32
    assert cli.main(["check", str(tmp_path / "three")]) == 0
