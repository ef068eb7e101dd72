"""What losses need beyond the teacher's rows: gathered from real teachers, refused where a teacher does not have it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from limbeck import collection, imitation, losses, objective, settings, storage, tasks, teachers
from limbeck.assets import bundled
from limbeck.collection import Plan
from limbeck.contracts import Spec, View
from limbeck.dataset import Dataset
from limbeck.errors import InputError
from limbeck.losses import LOSSES
from limbeck.objective import Term
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.stages import features, knowledge, opening, refusals, targets, values
from limbeck.stages.scene import Progress
from limbeck.stages.targets import Rule
from limbeck.students import family as families
from limbeck.students.grammar import parse
from limbeck.students.port import Port

FIXTURES = Path(__file__).parent.parent / "fixtures"
TASK = tasks.resolve("CartPole-v1")
HALF = View(indices=(0, 2))  # positions alone
PROGRAM = Spec(gym.spaces.Box(-np.inf, np.inf, (4,), np.float32), gym.spaces.Discrete(2))


def recipe(**changes: Any) -> Any:
    return settings.recipe_from({"teacher": "t", "env": "CartPole-v1", **changes})


def loaded(name: str, **options: Any) -> Any:
    return teachers.load(FIXTURES / name, TASK.spec, **options)


def played(teacher: Any, folder: Path, rounds: int = 2, terms: tuple[Term, ...] = (), random: float = 0.3) -> Dataset:
    """Rounds that the teacher drives, a part of its actions random."""
    data, policy = Dataset(folder, TASK.name), features.asked(teacher, terms)
    for number in range(rounds):
        plan = Plan(160, 4, "teacher", random_share=random)
        data.add(number, collection.collect(TASK, policy, [], plan, number, 0).columns, {})
    return data


def labelled(provider: Any, teacher: Any, data: Dataset, terms: tuple[Term, ...] = (), **changes: Any) -> Any:
    here = SimpleNamespace(run=SimpleNamespace(recipe=recipe(**changes)), task=TASK, teacher=teacher)
    return provider.labels(here, None, data, terms, Progress())[0]


# ---------------------------------------------------------------- Bellman targets


def rows(n: int, **columns: Any) -> dict[str, Any]:
    base = {
        "first": np.arange(n) == 0, "terminated": np.zeros(n, bool), "truncated": np.zeros(n, bool), "reward": np.arange(1.0, n + 1),
        "executed": np.zeros(n, np.int64), "teacher/value": 100.0 * np.arange(1, n + 1), "teacher/params": np.tile([0.0, -1.0], (n, 1)),
    }  # fmt: skip
    return {**base, **columns}


def test_targets_are_those_worked_out_by_hand() -> None:
    """gamma 1/2, rewards 1 2 3 4, V 100 200 300 400 of the rows' own states."""
    one, two = (targets.of_shard(rows(4), Rule(0.5, n)) for n in (1, 2))
    assert one["target"].tolist() == [1 + 100, 2 + 150, 3 + 200, 0], "r + V(next) / 2"
    assert one["known"].tolist() == [1, 1, 1, 0], "what came of the last row was not stored"
    assert two["target"].tolist() == [1 + 1 + 75, 2 + 1.5 + 100, 203, 0], (
        "the last but one can look one step ahead only"
    )
    ends = targets.of_shard(rows(4, terminated=np.array([False, True, False, False])), Rule(0.5, 3))
    assert ends["target"].tolist() == [1 + 1, 2, 203, 0]
    assert ends["known"].tolist() == [1, 1, 1, 0], "an end has no future, and that is known"
    limit = targets.of_shard(rows(4, truncated=np.array([False, True, False, False])), Rule(0.5, 3))
    assert limit["known"].tolist() == [1, 0, 1, 0], "what a time limit cut off is not known"
    assert limit["target"][0] == 1 + 100
    cut = targets.of_shard(rows(4, first=np.array([True, False, True, False])), Rule(0.5, 3))
    assert cut["known"].tolist() == [1, 0, 1, 0]


def test_several_steps_are_taken_along_greedy_actions_only() -> None:
    other = targets.of_shard(rows(4, executed=np.array([1, 1, 0, 0])), Rule(0.5, 3))
    assert other["target"].tolist() == [101, 2 + 1.5 + 100, 203, 0], "row 1 acts otherwise, so row 0 stops before it"
    assert other["action"].tolist() == [1, 1, 0, 0]
    tied = targets.of_shard(
        rows(4, executed=np.array([1, 1, 0, 0]), **{"teacher/params": np.zeros((4, 2))}), Rule(0.5, 3)
    )
    assert tied["target"][0] == 1 + 1 + 0.75 + 50, "one greedy action is as good as another"
    counted = targets.of_shard(rows(4, executed=np.full(4, 5)), Rule(0.5, 1, start=5))
    assert counted["action"].tolist() == [0, 0, 0, 0]
    assert targets.of_shard(rows(4), Rule(0.5, 1, reward_scale=0.1))["target"][1] == np.float32(0.2 + 150)


def test_played_rows_agree_with_a_plain_loop_over_their_steps(tmp_path: Path) -> None:
    teacher = loaded("sb3_dqn_cartpole.zip")
    data = played(teacher, tmp_path)
    found = labelled(targets, teacher, data, gamma=0.9, imitate={"bellman_steps": 3, "bellman_baseline": False})
    q = data.column("teacher/params").astype(np.float64) + data.column("teacher/value")[:, None]
    assert np.array_equal(teacher.policy(data.observations(), {}, data.first()).params.argmax(1), q.argmax(1))
    expected, known, begins = [], [], np.cumsum([0] + [len(shard["first"]) for shard in data.shards])
    for i in range(data.rows):
        end = begins[np.searchsorted(begins, i, "right")]
        total, scale, t, ok = 0.0, 1.0, i, False
        for _ in range(3):
            total, scale, ok = total + scale * data.column("reward")[t], scale * 0.9, True
            if data.column("terminated")[t]:
                break
            if data.column("truncated")[t] or t + 1 == end or data.first()[t + 1]:
                ok = False
                break
            t += 1
            done_here = data.column("action")[t] != q[t].argmax()
            leads = data.column("terminated")[t] or not (
                data.column("truncated")[t] or t + 1 == end or data.first()[t + 1]
            )
            if done_here or not leads or _ == 2:
                total += scale * q[t].max()
                break
        expected.append(total)
        known.append(ok)
    assert found["known"].bool().tolist() == known
    assert 0.3 < np.mean(known) < 1.0
    assert np.allclose(found["target"].numpy()[known], np.array(expected)[known], rtol=1e-5)
    relative = labelled(targets, teacher, data, gamma=0.9, imitate={"bellman_steps": 3})["target"].numpy()
    assert np.allclose(relative[known], (np.array(expected) - q.max(1))[known], rtol=1e-3, atol=1e-4)
    assert found["action"].dtype == torch.int64
    assert found["target"].dtype == found["known"].dtype == torch.float32


def test_the_discount_is_the_recipes_then_the_files_then_the_usual_one() -> None:
    stated = loaded("sb3_a2c_cartpole.zip")
    silent = loaded("cleanrl_c51.cleanrl_model")
    assert values.discount(recipe(), stated) == stated.info.stated["gamma"] == 0.98
    assert values.discount(recipe(gamma=0.5), stated) == 0.5
    assert values.discount(recipe(), silent) == 0.99


# ---------------------------------------------------------------- values


def test_values_are_the_teachers_own_and_their_scale_stays_that_of_the_first_round(tmp_path: Path) -> None:
    teacher = loaded("sb3_a2c_cartpole.zip")
    data = played(teacher, tmp_path, rounds=1)
    first = labelled(values, teacher, data)
    again = played(teacher, tmp_path / "more", rounds=3)
    later = labelled(values, teacher, again)
    own = teacher.policy(data.observations(), {}, data.first()).value
    assert np.allclose(first["value"].numpy(), own, rtol=1e-5)
    assert (first["value_mean"], first["value_scale"]) == (later["value_mean"], later["value_scale"])
    assert first["value_mean"].item() == pytest.approx(own.mean(), rel=1e-5)
    assert first["value_scale"].item() == pytest.approx(own.std(), rel=1e-4)
    assert len(later["value"]) == again.rows > data.rows


@pytest.mark.parametrize(("name", "action"), [("cleanrl_c51.cleanrl_model", "c51"), ("contrib_qrdqn_cartpole.zip", "qr"), ("sb3_dqn_cartpole.zip", "dqn")])  # fmt: skip
def test_q_teachers_value_a_state_by_their_best_action(name: str, action: str, tmp_path: Path) -> None:
    teacher = loaded(name)
    data = played(teacher, tmp_path, rounds=1)
    assert values.states_value(teacher)
    said = teacher.policy(data.observations(), {}, data.first()).params
    assert np.allclose(labelled(values, teacher, data)["value"].numpy(), said.max(axis=1), rtol=1e-5), action
    assert teacher.policy.head.kind == "q"


# ---------------------------------------------------------------- layers


def test_layers_are_stored_beside_the_answers_they_belong_to(tmp_path: Path) -> None:
    teacher = loaded("sb3_a2c_cartpole.zip")
    terms = (Term("kl", 1.0), Term("hint", 1.0, layer="last", source="layers.1"), Term("hint", 1.0, source="layers.0"))
    data = played(teacher, tmp_path, terms=terms)
    found = labelled(features, teacher, data, terms)
    assert set(found) == {"feature:layers.1", "feature:layers.0"}
    assert found["feature:layers.1"].shape == (data.rows, 16)
    blueprint = teacher.blueprint
    last = blueprint.layers[-1]
    logits = found["feature:layers.1"].numpy() @ last.weight + last.bias
    logits = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert np.allclose(logits, data.column("teacher/params"), atol=1e-5)
    here = SimpleNamespace(teacher=teacher)
    assert knowledge.feature_shapes(here, terms) == {"layers.0": (16,), "layers.1": (16,)}


def test_a_teacher_with_memory_shows_its_layers_along_its_episodes(tmp_path: Path) -> None:
    spec = tasks.resolve("CartPole-v1").spec
    teacher = teachers.load(FIXTURES / "contrib_lstm_shared_cartpole.zip", spec, view=HALF)
    terms = (Term("hint", 1.0, source="layers.0"),)
    data = played(teacher, tmp_path, terms=terms)
    columns = {name: data.shards[0][name] for name in ("obs", "first")}
    along = collection._label_along(features.asked(teacher, terms), columns, TASK)
    assert np.allclose(along["feature/layers.0"], data.shards[0]["feature/layers.0"], atol=1e-5)
    assert np.ptp(along["feature/layers.0"]) > 0.05


# ---------------------------------------------------------------- distributional teachers


@pytest.mark.parametrize("name", ["cleanrl_c51.cleanrl_model", "contrib_qrdqn_cartpole.zip"])
@pytest.mark.parametrize("loss", ["q_kl", "q_mse"])
def test_a_mean_q_student_learns_a_distributional_teacher(name: str, loss: str, tmp_path: Path) -> None:
    """Its head has A outputs, of the teacher's A * N; what it does is what the teacher does."""
    teacher = loaded(name)
    data = played(teacher, tmp_path, rounds=4)
    port = Port(TASK.spec, View(), losses.student_head([loss], teacher.policy.head), 4)
    family = families.build(parse(["mlp:16x16"]), {TASK.name: port}, 0)
    family.normalisers[TASK.name] = imitation.normaliser_of(data, port)
    q = data.column("teacher/params")
    spread = torch.tensor(float((q.max(1) - q.min(1)).mean()))  # "gap" of the losses on centred Q
    temperature = losses.q.entropy_temperature(torch.from_numpy(q), 0.25)
    table = imitation.table(
        data, port, teacher.policy.head, family.normalisers[TASK.name], temperature, {"gap": spread}
    )
    pace = imitation.Pace(300, 256, 3e-3, 1.0)
    imitation.imitate(family, {TASK.name: table}, objective.parse(loss, teacher.policy.head), pace, 0, 0)
    student = family.blueprint(family.members[0].name, TASK.name)
    assert student.layers[-1].outputs == teacher.policy.head.width == 2
    said = NumpyPolicy(student)(data.observations(), {}, data.first()).params
    sure = np.abs(q[:, 0] - q[:, 1]) > 0.1 * spread.item()
    assert (said.argmax(1) == q.argmax(1))[sure].mean() > 0.9


# ---------------------------------------------------------------- refused before anything runs


def refused(teacher: Any, loss: str, **changes: Any) -> str:
    with pytest.raises(InputError) as caught:
        refusals.refuse(recipe(imitate={"loss": loss}, **changes), TASK, teacher)
    return str(caught.value)


def test_a_layer_that_does_not_exist_is_refused_with_those_that_do() -> None:
    words = refused(loaded("sb3_a2c_cartpole.zip"), "kl + hint@last=layers.9")
    assert "unknown teacher layer 'layers.9'" in words
    assert "did you mean 'layers." in words
    assert "mlp_extractor.policy_net.0" in words


def test_a_layer_that_a_student_does_not_have_is_refused() -> None:
    words = refused(loaded("sb3_a2c_cartpole.zip"), "kl + hint@dense7=layers.0")
    assert "no student layer 'dense7'" in words


def test_layers_without_pictures_have_no_attention() -> None:
    words = refused(loaded("sb3_a2c_cartpole.zip"), "kl + attention@dense0=layers.0", students=["mlp:8"])
    assert "convolutions on both sides" in words


def test_a_team_has_a_hidden_layer_for_each_agent() -> None:
    """Its rows are agents x units, and a loss owns parameters for units: refused before a step is played."""
    view, choices = gym.spaces.Box(-1, 1, (2, 3), np.float32), gym.spaces.MultiDiscrete([4, 4])
    team = SimpleNamespace(spec=Spec(view, choices, "team", 2), name="team")
    teacher = loaded("sb3_a2c_cartpole.zip")
    for term in (Term("value", 0.5), Term("hint", 1.0, source="layers.0")):
        with pytest.raises(InputError, match="a team of 2 has one for each agent"):
            knowledge.refuse(recipe(), team, teacher, [Term("kl", 1.0), term])
        knowledge.refuse(recipe(), TASK, teacher, [Term("kl", 1.0), term])
    knowledge.refuse(recipe(), team, teacher, [Term("kl", 1.0)])


def test_a_program_shows_no_layers() -> None:
    program = teachers.load(
        FIXTURES / "torch_scripted.pt", PROGRAM, trust=storage.sha256(FIXTURES / "torch_scripted.pt")
    )
    with pytest.raises(InputError, match=r"TorchScript.*shows nothing inside.*torch\.nn\.Module"):
        knowledge.refuse(recipe(), TASK, program, [Term("hint", 1.0, source="layers.0")])


def test_a_teacher_without_a_critic_has_no_value() -> None:
    bare = teachers.load(lambda obs: (np.asarray(obs)[:, 2] > 0).astype(int), TASK.spec)
    words = refused(bare, "kl + 0.5*value")
    assert "loss 'value' needs a teacher that says what a state is worth" in words
    assert "actor-critic with its critic" in words
    assert not values.states_value(teachers.load(bundled("bundled:ppo-lunar"))), "its critic was left out of the file"
    refusals.refuse(recipe(imitate={"loss": "kl + 0.5*value"}), TASK, loaded("sb3_a2c_cartpole.zip"))


def test_a_policy_has_no_bellman_targets() -> None:
    assert "loss 'bellman' needs a teacher with" in refused(loaded("sb3_a2c_cartpole.zip"), "bellman")
    words = targets.missing(recipe(), TASK, loaded("sb3_a2c_cartpole.zip"), ())
    assert words is not None
    assert "is categorical" in words
    assert "needs action values" in refused(loaded("contrib_ars_cartpole.zip"), "bellman"), "ARS only ranks its actions"
    assert not values.states_value(loaded("contrib_ars_cartpole.zip"))
    refusals.refuse(recipe(imitate={"loss": "bellman"}), TASK, loaded("sb3_dqn_cartpole.zip"))


def test_recordings_without_rewards_have_no_bellman_targets(tmp_path: Path) -> None:
    path = tmp_path / "bare.npz"
    ends = np.arange(40) % 8 == 7
    np.savez(path, observations=np.zeros((40, 4), np.float32), actions=np.zeros(40, np.int64), terminals=ends)
    given = recipe(teacher=str(FIXTURES / "sb3_dqn_cartpole.zip"), env=None, data=str(path))
    task, opened = opening.open_both(given)
    with pytest.raises(InputError, match="rewards, which these recordings do not hold"):
        knowledge.refuse(given, task, opened, [Term("bellman", 1.0)])


def test_what_nothing_provides_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "kl", replace(LOSSES["kl"], needs=frozenset({"miracles"})))
    assert "needs miracles" in refused(loaded("sb3_a2c_cartpole.zip"), "kl")


def test_a_horizon_needs_a_value() -> None:
    bare = teachers.load(lambda obs: (np.asarray(obs)[:, 2] > 0).astype(int), TASK.spec)
    words = refused(bare, "kl", polish={"horizon": 20})
    assert "polish.horizon needs a teacher that says what a state is worth" in words
    refusals.refuse(recipe(polish={"horizon": 20}), TASK, loaded("sb3_a2c_cartpole.zip"))
    remembering = teachers.load(FIXTURES / "contrib_lstm_shared_cartpole.zip", TASK.spec, view=HALF)
    assert "remembers" in refused(remembering, "kl", polish={"horizon": 20})


def test_the_settings_have_their_ranges() -> None:
    for wrong in ({"gamma": 1.5}, {"imitate": {"bellman_steps": 0}}, {"polish": {"horizon": 0}}, {"imitate": {"reward_scale": 0}}):  # fmt: skip
        with pytest.raises(InputError, match="out of range"):
            recipe(**wrong)
