"""What a run knows of the worth of actions: whose Q it is, SB3's critics against SB3, a fit from end to end, refusals."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import family_runs
import gymnasium as gym
import numpy as np
import pytest
import torch
from end_to_end_cases import no_film

import limbeck
from limbeck import imitation, machine, pipeline, storage, teachers
from limbeck.contracts import EXACT, OWN, Head, Spec, Teacher
from limbeck.dataset import open_dataset
from limbeck.errors import InputError
from limbeck.proof import error_of
from limbeck.reporting import load_result
from limbeck.settings import recipe_from
from limbeck.stages import critics, refusals
from limbeck.stages.opening import open_both

FIXTURES = Path(__file__).parents[1] / "fixtures"
PENDULUM = Spec(*(getattr(gym.make("Pendulum-v1"), f"{k}_space") for k in ("observation", "action")))
CARTPOLE = Spec(*(getattr(gym.make("CartPole-v1"), f"{k}_space") for k in ("observation", "action")))


def loaded(name: str, spec: Spec) -> Teacher:
    return teachers.load(FIXTURES / f"{name}.zip", spec)


# ---------------------------------------------------------------- whose Q it is


@pytest.mark.parametrize(
    ("name", "spec", "source"),
    [
        ("sb3_dqn_cartpole", CARTPOLE, OWN),
        ("contrib_qrdqn_cartpole", CARTPOLE, OWN),
        ("sb3_sac_pendulum", PENDULUM, OWN),
        ("contrib_ars_cartpole", CARTPOLE, None),  # its scores are no values
        ("cartpole_ppo_sb3", CARTPOLE, None),
    ],
)
def test_a_teacher_s_own_values_are_told_from_scores(name: str, spec: Spec, source: str | None) -> None:
    assert critics.own_source(loaded(name, spec)) == source


def test_values_that_are_declared_exact_are_called_so() -> None:
    teacher = loaded("sb3_dqn_cartpole", CARTPOLE)
    assert critics.own_source(dataclasses.replace(teacher, exact=True)) == EXACT


# ---------------------------------------------------------------- the critics of Stable-Baselines3


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [
        ("sb3_sac_pendulum", "SAC"), ("sb3_sac_sde_pendulum", "SAC"), ("sb3old_sac_pendulum", "SAC"),
        ("sb3_td3_pendulum", "TD3"), ("sb3_ddpg_pendulum", "DDPG"), ("contrib_tqc_pendulum", "TQC"),
    ],
)  # fmt: skip
def test_a_saved_critic_is_what_stable_baselines3_computes(name: str, algorithm: str) -> None:
    """Values of size 100 from float32 layers of 16: a few units in the last place are 1e-4."""
    stable_baselines3 = pytest.importorskip("stable_baselines3", reason='pip install "limbeck[test]"')
    sb3_contrib = pytest.importorskip("sb3_contrib", reason='pip install "limbeck[test]"')
    rng = np.random.default_rng(0)
    obs = rng.uniform(-1, 1, (64, 3)).astype(np.float32) * np.array([1, 1, 8], np.float32)
    action = rng.uniform(-2, 2, (64, 1)).astype(np.float32)
    mine = loaded(name, PENDULUM).critic
    assert mine is not None
    model = getattr(sb3_contrib if algorithm == "TQC" else stable_baselines3, algorithm).load(
        FIXTURES / f"{name}.zip", device="cpu"
    )
    seen, scaled = torch.from_numpy(obs), torch.from_numpy(model.policy.scale_action(action))
    with torch.no_grad():
        if algorithm == "SAC":
            wanted = torch.cat(model.critic(seen, scaled), 1).min(1).values
        elif algorithm == "TQC":
            wanted = model.critic(seen, scaled).mean((1, 2))
        else:
            wanted = model.critic.q1_forward(seen, scaled)[:, 0]
    assert mine(obs, torch.from_numpy(action)).numpy() == pytest.approx(wanted.numpy(), abs=1e-4)


def test_slopes_are_those_of_a_known_surface() -> None:
    """Q = 3 a0 - 2 a0^2 + |a1 - 0.05|: slope (3 - 4 a0, sign), curvature (-4, bent upwards: 0)."""
    head = Head("tanh", (2,), (-1.0, -1.0), (1.0, 1.0), (), (2,))
    at = torch.tensor([[0.5, 0.0], [-0.25, 0.9], [1.0, -1.0]])
    slope, curve, level = critics.slopes(lambda a: 3 * a[:, 0] - 2 * a[:, 0] ** 2 + (a[:, 1] - 0.05).abs(), at, head)
    assert slope.numpy() == pytest.approx(np.array([[1.0, -1.0], [4.0, 1.0], [-1.0, -1.0]]))
    assert curve.numpy() == pytest.approx(np.array([[-4.0, 0.0]] * 3), abs=1e-3)
    assert level.numpy() == pytest.approx(np.array([1.05, -0.025, 2.05]), abs=1e-6)


def test_slopes_of_a_saved_critic_are_its_differences() -> None:
    teacher = loaded("sb3_sac_pendulum", PENDULUM)
    assert teacher.critic is not None
    obs = np.random.default_rng(1).uniform(-1, 1, (32, 3)).astype(np.float32)
    at = torch.from_numpy(np.random.default_rng(2).uniform(-1.5, 1.5, (32, 1)).astype(np.float32))
    slope, curve, _ = critics.slopes(lambda a: teacher.critic(obs, a), at, teacher.policy.head)
    secant = (teacher.critic(obs, at + 1e-2) - teacher.critic(obs, at - 1e-2)) / 2e-2
    assert np.median(np.abs(slope.numpy()[:, 0] - secant.numpy())) < 0.05 * secant.abs().mean().item()
    assert (curve <= 0).all()
    assert (curve < 0).any()  # ReLU units bend over a distance


# ---------------------------------------------------------------- the error of a fit


def test_the_error_is_predicted_less_measured_with_an_interval_that_covers() -> None:
    """Normal differences of mean 2 and deviation 1 over 40 episodes: 95 % intervals hold 2 in at least 85 of 100 draws."""
    rng = np.random.default_rng(0)
    held = 0
    for i in range(100):
        student, teacher = rng.normal(size=40), rng.normal(size=40)
        found = error_of(teacher - student + rng.normal(2, 1, 40), student, teacher, i)
        held += found.low <= 2 <= found.high
    assert held >= 85
    assert str(error_of(np.array([3.0, 3.0]), np.zeros(2), np.ones(2), 0)) == "fitted (error +2 [+2, +2])"


# ---------------------------------------------------------------- from end to end


SHORT = {
    "teacher": str(FIXTURES / "cartpole_ppo_sb3.zip"), "env": "CartPole-v1", "students": ["mlp:8@1"],
    "task": {"kwargs": {"max_episode_steps": 60}}, "report": {"gallery": "off"}, "verify": {"episodes": 4, "random_episodes": 8}, "collect": {"steps": 400}, "polish": {"enabled": False},
    "race": {"episodes": 2, "final_episodes": 4}, "prove": {"max_episodes": 16, "chunk": 8, "bound_episodes": 16},
    "export": {"targets": ["onnx"]}, "critic": {"episodes": 4, "features": 32, "action_features": 16},
}  # fmt: skip


@pytest.fixture(autouse=True)
def unfilmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.reporting.side_by_side", no_film)


def test_anneal_fits_a_critic_for_a_policy_and_reports_its_error(tmp_path: Path) -> None:
    told: list[str] = []
    values = {**SHORT, "imitate": {"loss": "anneal", "rounds": 3, "gradient_steps": 20}}
    pipeline.distill(
        values,
        [],
        tmp_path / "run",
        teacher_object=None,
        env_object=None,
        tell=lambda stage, text: told.append(f"{stage}: {text}"),
    )
    result = load_result(tmp_path / "run")
    proof = result.members[0].proof
    assert proof is not None
    assert proof.sources["regret"].startswith("fitted (error ")
    assert np.isfinite(proof.fidelity["regret"])
    assert result.bill.critic_fits == 3 * 3
    assert result.bill.critic_steps > 0
    assert result.bill.env_steps >= result.bill.critic_steps + result.bill.collection_steps
    assert "fitted (error " in (tmp_path / "run" / "report.html").read_text()
    assert any(line.startswith("critic: regret predicts") for line in told)
    _same_again(tmp_path / "run")


def _same_again(folder: Path) -> None:
    """The fit is a function of the data set alone, so that a resumed run has the same, bit for bit."""
    recipe = recipe_from({**SHORT, "imitate": {"loss": "anneal", "rounds": 3, "gradient_steps": 20}})
    task, teacher = open_both(recipe, None, None)
    mode = storage.read_json(folder / "records" / "verify.json")["mode"]
    here = SimpleNamespace(run=SimpleNamespace(recipe=recipe), task=task, teacher=teacher, mode=mode, seed=recipe.seed)
    with machine.steady(1):
        fitted, stored = critics.fit(here, open_dataset(folder / "dataset", task.name)), critics.load(folder)
    assert stored is not None
    assert all(torch.equal(fitted.arrays[name], stored.arrays[name]) for name in stored.arrays)


@pytest.mark.slow
def test_lunarlander_anneals_with_a_fitted_critic(tmp_path: Path) -> None:
    options = ["imitate.loss=anneal", "polish.enabled=false", "prove.max_episodes=64"]
    result = limbeck.distill("bundled:ppo-lunar", "LunarLander-v3", ["mlp:16x16@2"], tmp_path / "run", options=options)
    proof = result.members[0].proof
    assert proof is not None
    assert proof.sources["regret"].startswith("fitted (error ")
    assert proof.retention > 0.3  # random play is 0


ARS = {
    **SHORT, "teacher": str(FIXTURES / "contrib_ars_cartpole.zip"), "verify": {**SHORT["verify"], "accept": True},
    "prove": {"max_episodes": 8, "chunk": 8, "bound_episodes": 10},
}  # fmt: skip


def test_a_teacher_of_scores_is_fitted_and_judged_on_the_same_inputs(tmp_path: Path) -> None:
    """Its largest score is no value, so the fit sees the observation alone; offline the rows do not change after the first
    of three rounds, and neither does the critic."""
    imitate = {"loss": "q_kl + regret", "rounds": 3, "gradient_steps": 5}
    values = {**ARS, "imitate": imitate, "collect": {"steps": 100, "driver": "offline"}}
    fits = []
    with pytest.MonkeyPatch.context() as patched:
        fit = critics.fitting.fit
        patched.setattr(critics.fitting, "fit", lambda *given: fits.append(1) or fit(*given))
        pipeline.distill(
            values, [], tmp_path / "run", teacher_object=None, env_object=None, tell=lambda stage, text: None
        )
    result, stored = load_result(tmp_path / "run"), critics.load(tmp_path / "run")
    assert stored is not None
    assert stored.arrays["centre"].shape == (4,), "CartPole's four numbers, and no value"
    proof = result.members[0].proof
    assert proof is not None
    assert proof.sources["regret"].startswith("fitted (error ")
    assert len(fits) == 1
    assert result.bill.critic_fits == 3, "one fit of three members"


def test_a_run_killed_behind_a_fit_has_the_same_critic_and_bill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["imitate.loss=kl + regret", "collect.driver=offline", "collect.teacher_rounds=2", "imitate.rounds=4"]
    options += ["critic.features=8", "critic.action_features=4", "race.rounds=", "collect.random_share=0.3"]
    teacher, fits, fit = FIXTURES / "cartpole_ppo_sb3.zip", [], critics.fitting.fit
    monkeypatch.setattr(critics.fitting, "fit", lambda *given: fits.append(1) or fit(*given))
    _, whole, done = family_runs.imitated(tmp_path / "a", teacher, "CartPole-v1", ["mlp:4"], options)
    assert (len(fits), done.critic_fits) == (2, 2 * 3), "two rounds of play, then two of training alone"
    imitate, calls = imitation.imitate, []

    def killed(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return imitate(*given)

    monkeypatch.setattr(imitation, "imitate", killed)
    with pytest.raises(KeyboardInterrupt):
        family_runs.imitated(tmp_path / "b", teacher, "CartPole-v1", ["mlp:4"], options)
    _, parts, again = family_runs.imitated(tmp_path / "b", teacher, "CartPole-v1", ["mlp:4"], options)
    assert np.array_equal(whole.row("mlp-4-s0"), parts.row("mlp-4-s0"))
    assert dataclasses.replace(again, seconds=0) == dataclasses.replace(done, seconds=0)


def test_a_critic_of_other_rounds_is_not_taken_for_these(tmp_path: Path) -> None:
    arrays = {"solution": torch.zeros(2, 3)}
    critics.save(SimpleNamespace(folder=tmp_path), critics.Fitted(arrays, 0.5), 2)
    for rounds, found in ((2, True), (1, False), (3, False), (None, True)):
        assert (critics.load(tmp_path, rounds) is not None) == found


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("loss", ["q_mse", "q_huber", "regret + 0.5*q_mse"])
def test_scores_are_no_action_values_to_regress_on(loss: str) -> None:
    text = refused({**ARS, "imitate": {"loss": loss}})
    assert "only rank the actions" in text
    assert "DQN" in text


def refused(values: dict) -> str:
    recipe = recipe_from(values)
    task, teacher = open_both(recipe, None, None)
    with pytest.raises(InputError) as error:
        refusals.refuse(recipe, task, teacher)
    return str(error.value)


def test_regret_of_a_policy_without_a_fit_names_what_is_needed() -> None:
    text = refused({**SHORT, "imitate": {"loss": "regret"}, "critic": {"fit": False}})
    assert "regret" in text
    assert "critic.fit=true" in text
    assert "DQN" in text


def test_regret_on_recordings_without_rewards_is_refused(tmp_path: Path) -> None:
    with np.load(FIXTURES / "demos_recordings.npz") as held:
        kept = {name: held[name] for name in held.files if "reward" not in name}
    np.savez(tmp_path / "bare.npz", **kept)
    values = {
        "teacher": str(FIXTURES / "cartpole_ppo_sb3.zip"), "env": None, "data": str(tmp_path / "bare.npz"),
        "students": ["mlp:8"], "imitate": {"loss": "regret"},
    }  # fmt: skip
    assert "rewards" in refused(values)
