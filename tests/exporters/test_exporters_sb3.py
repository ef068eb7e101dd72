"""Back to Stable-Baselines3: its own loader opens the file, its own predict gives the student's action, and it learns on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from cases_export import CASES, CONTINUOUS, MIXED, blueprint, observations, starts
from cases_layers import LAYER_CASES
from gymnasium import spaces as S
from test_exporters_trees import CASES as TREES

import limbeck
from limbeck import distributions, exporters
from limbeck.contracts import Blueprint, HeadKind, Normaliser, View
from limbeck.errors import InputError
from limbeck.exporters import golden, sb3
from limbeck.runtimes.numpy import NumpyPolicy

sb3_library = pytest.importorskip("stable_baselines3", reason='pip install "limbeck[sb3]"')
SYMMETRIC = S.Box(-2, 2, (1,), np.float32)
KINDS = S.Dict({"zeta": S.Box(-1, 1, (2, 2), np.float32), "alpha": S.Discrete(3), "bits": S.MultiBinary(2)})
GOOD: dict[str, Blueprint] = {
    "categorical": blueprint(S.Discrete(4)),
    "linear": blueprint(S.Discrete(3), hidden=()),
    "multicategorical": blueprint(S.MultiDiscrete([3, 2, 4]), activation="tanh"),
    "bernoulli": blueprint(S.MultiBinary(3), activation="elu"),
    "q": blueprint(S.Discrete(4), "q", activation="silu"),
    "gaussian": blueprint(CONTINUOUS, "gaussian", activation="tanh"),
    "deterministic": blueprint(SYMMETRIC, "deterministic", hidden=(9,)),
    "squashed": blueprint(CONTINUOUS, "squashed"),
    "tanh": blueprint(CONTINUOUS, "tanh", hidden=()),
    "dict": blueprint(S.Discrete(3), observation_space=KINDS, view=View(keys=("zeta", "alpha"))),
    "indices": blueprint(S.Discrete(3), "q", view=View(indices=(4, 0, 0))),
    "one number of several": blueprint(S.Discrete(3), observation_space=S.MultiDiscrete([3, 4])),
    "normalised": blueprint(S.Discrete(3), clip=np.inf),
}


def exported(policy: Blueprint, folder: Path, rows: int = 24) -> golden.Golden:
    held = golden.label(NumpyPolicy(policy), observations(policy.spec.observation_space, rows), starts(rows))
    exporters.export(policy, folder, ["sb3"], held)
    return held


def model_of(policy: Blueprint, folder: Path):
    return getattr(sb3_library, sb3.ALGORITHMS[policy.head.kind]).load(folder / "sb3" / "policy.zip")


@pytest.mark.parametrize("name", GOOD)
def test_the_library_gives_the_students_action(name: str, tmp_path: Path) -> None:
    policy = GOOD[name]
    held = exported(policy, tmp_path)  # which replays the golden rows through the library
    model = model_of(policy, tmp_path)
    assert all(row.ok for row in exporters.check(tmp_path))
    for row in range(4):  # one observation without a batch, as a user has it
        one = {k: v[row] for k, v in held.obs.items()} if isinstance(held.obs, dict) else held.obs[row]
        action, _ = model.predict(one, deterministic=True)
        wanted = distributions.act(policy.head, held.params)[row]
        np.testing.assert_allclose(np.asarray(action, np.float64), wanted, atol=1e-5)


def test_a_changed_weight_is_found(tmp_path: Path) -> None:
    policy = GOOD["categorical"]
    held = exported(policy, tmp_path)
    other = replace(policy, layers=(replace(policy.layers[0], bias=policy.layers[0].bias + 1), *policy.layers[1:]))
    sb3.export(other, tmp_path / "sb3")
    assert not golden.compare(held, exporters.load(tmp_path, "sb3")).ok


@pytest.mark.parametrize(
    ("env", "kind"),
    [("CartPole-v1", "categorical"), ("CartPole-v1", "q"), ("Pendulum-v1", "gaussian"), ("Pendulum-v1", "squashed"), ("Pendulum-v1", "tanh")],
)  # fmt: skip
def test_learning_goes_on(env: str, kind: HeadKind, tmp_path: Path) -> None:
    made = gym.make(env)
    policy = blueprint(made.action_space, kind, observation_space=made.observation_space, hidden=(8,))
    exported(policy, tmp_path)
    model = model_of(policy, tmp_path)
    before = {k: v.clone() for k, v in model.policy.state_dict().items()}
    model.set_env(made)
    if sb3.ALGORITHMS[kind] == "PPO":
        model.n_steps = model.batch_size = 64
        model.rollout_buffer.buffer_size = 64
    else:
        model.learning_starts = 192  # gradient steps of the library's wide critics take long
    model.learn(200)
    made.close()
    assert model.num_timesteps >= 200
    assert any((v != before[k]).any() for k, v in model.policy.state_dict().items())


def test_the_same_student_gives_the_same_file_and_no_random_state_is_touched(tmp_path: Path) -> None:
    import torch

    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    made = [sb3.export(GOOD["q"], tmp_path / name).folder / "policy.zip" for name in "ab"]
    assert torch.equal(torch.rand(1), wanted)
    assert made[0].read_bytes() == made[1].read_bytes()


def test_exploration_begins_with_the_students_spread(tmp_path: Path) -> None:
    policy = GOOD["gaussian"]
    exported(policy, tmp_path)
    at_zero = NumpyPolicy(policy)(np.zeros((1, 5), np.float32), {}, np.ones(1, bool)).params[0, 3:]
    spread = model_of(policy, tmp_path).policy.log_std.detach().numpy()
    np.testing.assert_allclose(spread, np.clip(at_zero, -5, 2), atol=1e-6)
    ranged = GOOD["deterministic"]
    exported(ranged, tmp_path / "ranged")
    np.testing.assert_allclose(
        model_of(ranged, tmp_path / "ranged").policy.log_std.detach().numpy(), np.log(0.4), atol=1e-6
    )


@pytest.mark.parametrize(
    ("policy", "word"),
    [
        (CASES["gru"], "gru layer"),
        (blueprint(S.Discrete(3), view=View(history=2)), "history"),
        (LAYER_CASES["masked"], "action mask"),
        (LAYER_CASES["pool of raw numbers"], "pool layer"),
        (LAYER_CASES["norm"], "norm layer"),
        (blueprint(S.Discrete(3), clip=5.0), "normaliser"),
        (replace(blueprint(S.Discrete(3)), normaliser=Normaliser(np.full(5, 300, np.float32), np.ones(5, np.float32))), "normaliser"),
        (blueprint(S.Discrete(3, start=1)), "begin at 0"),
        (blueprint(S.Discrete(3), observation_space=MIXED), "begin at 0"),
        (blueprint(S.Box(-np.inf, np.inf, (2,), np.float32)), "without bounds"),
        (blueprint(S.Discrete(3), observation_space=S.Box(0, 255, (2, 2, 1), np.uint8)), "pictures"),
    ],
)  # fmt: skip
def test_students_that_have_no_such_policy_are_refused_in_one_line(
    policy: Blueprint, word: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=word) as caught:
        sb3.export(policy, tmp_path)
    assert "mlp:*" in str(caught.value)
    assert f"{exporters.unfit('sb3', policy)}." == str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_mixed_activations_are_refused(tmp_path: Path) -> None:
    first, *rest = blueprint(S.Discrete(3)).layers
    with pytest.raises(InputError, match="tanh, relu, identity"):
        sb3.export(replace(blueprint(S.Discrete(3)), layers=(replace(first, activation="tanh"), *rest)), tmp_path)


def test_low_rank_students_are_multiplied_out(tmp_path: Path) -> None:
    policy = blueprint(S.Discrete(4), hidden=(3, 20), activation="tanh")
    narrow, *rest = policy.layers
    policy = replace(policy, layers=(replace(narrow, activation="identity"), *rest))
    exported(policy, tmp_path)  # which replays the golden rows
    assert model_of(policy, tmp_path).policy.net_arch == {"pi": [20], "vf": [64, 64]}


def test_what_fits_is_told_before_anything_is_written() -> None:
    assert not any(exporters.unfit("sb3", policy) for policy in GOOD.values())
    assert "tree layer" in exporters.unfit("sb3", next(iter(TREES.values())))


def test_the_card_says_what_is_untrained(tmp_path: Path) -> None:
    exported(GOOD["linear"], tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "PPO.load" in card
    assert "untrained" in card


@pytest.mark.parametrize(
    ("students", "options", "word"), [("gru:8", [], "gru:8"), ("mlp:8:int8", [], "int8"), ("mlp:8", ["history=2"], "history"), ("mlp:8", ["compress=quantise int8"], "quantised")]
)  # fmt: skip
def test_a_recipe_for_such_students_is_refused_before_anything_runs(
    students: str, options: list[str], word: str, tmp_path: Path
) -> None:
    teacher = Path(__file__).parent.parent / "fixtures" / "cartpole_ppo_sb3.zip"
    with pytest.raises(InputError, match=word):
        limbeck.distill(
            teacher, "CartPole-v1", [students], tmp_path / "run", options=["export.targets=numpy,sb3", *options]
        )
    assert not (tmp_path / "run" / "dataset").exists()


def test_an_absent_file_is_told(tmp_path: Path) -> None:
    exported(GOOD["linear"], tmp_path)
    (tmp_path / "sb3" / "policy.zip").unlink()
    with pytest.raises(InputError, match=r"no policy\.zip"):
        exporters.load(tmp_path, "sb3")
    assert sb3.missing() == ""
