"""Seven tiny real cases through load -> collect -> imitate -> prove -> reload: the contracts, rehearsed.

memoryless MLP; GRU with resets inside a batch; Dict observation with a view; MultiDiscrete; squashed continuous;
digits; two tasks with one student. Each asserts that the student learned, that the reloaded file says the same, and
that the proof gave the verdict that the case was built for.
"""

from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces as gs

from limbeck import (
    blueprints,
    collection,
    distributions,
    imitation,
    losses,
    objective,
    proof,
    rollout,
    seeding,
    spaces,
    tasks,
    teachers,
)
from limbeck.collection import Plan
from limbeck.contracts import Blueprint, Bounds, Dense, Gru, View
from limbeck.dataset import open_dataset
from limbeck.imitation import Pace
from limbeck.proof import ReturnCache
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.settings import ProveSettings
from limbeck.students import family as families
from limbeck.students.grammar import parse
from limbeck.students.stack import Port
from limbeck.testing import check_policy


def distill(
    folder, cases, spec, *, view=View(), rounds=3, steps=400, lanes=4, gradient_steps=150, seed=0, hard=0.0, pace=None
):
    """The loop of a run on several tasks: `cases` maps a task to its teacher. Returns the family and the losses per round."""
    ports, data = {}, {}
    for task, teacher in cases:
        name = losses.choose("auto", teacher.policy.head)
        head = losses.student_head([name], teacher.policy.head)
        spaces.check_view(task.spec.observation_space, view)
        ports[task.name] = Port(
            task.spec, view, head, spaces.flat_size(task.spec.observation_space, view) * view.history
        )
        data[task.name] = open_dataset(folder, task.name)
    family = families.build(parse([spec]), ports, seed)
    name, history = family.members[0].name, []
    for number in range(rounds):
        tables = {}
        for task, teacher in cases:
            driver = "teacher" if number == 0 else "student"
            student = NumpyPolicy(family.blueprint(name, task.name))
            taken = collection.collect(task, teacher.policy, [student], Plan(steps, lanes, driver), number, seed)
            data[task.name].add(number, taken.columns, {})
            if number == 0:
                family.normalisers[task.name] = imitation.normaliser_of(data[task.name], ports[task.name])
            tables[task.name] = imitation.table(
                data[task.name], ports[task.name], teacher.policy.head, family.normalisers[task.name], 1.0
            )
        terms = objective.mixture(losses.choose("auto", cases[0][1].policy.head), hard)
        history.append(
            imitation.imitate(family, tables, terms, pace or Pace(gradient_steps, 128, 5e-3, 1.0), number, seed)[name]
        )
    return family, history


def reloaded(folder, family, task):
    """The student through its file: folded, saved, loaded as anybody's teacher would be."""
    name = family.members[0].name
    path = folder / f"{name}.safetensors"
    blueprints.save(blueprints.fold(family.blueprint(name, task.name)), path, {"task": task.name})
    again = teachers.load(path, task.spec)
    kept, frames = NumpyPolicy(family.blueprint(name, task.name)), []
    seeds = [seeding.episode_seed(0, "select", i) for i in range(3)]
    rollout.play(kept, task, seeds, watch=frames.append)
    state, other = kept.initial_state(len(frames[0].first)), again.policy.initial_state(len(frames[0].first))
    for frame in frames[:30]:
        one, two = kept(frame.obs, state, frame.first), again.policy(frame.obs, other, frame.first)
        state, other = one.state, two.state
        assert np.allclose(one.params[frame.alive], two.params[frame.alive], rtol=1e-3, atol=1e-3)
    check_policy(again.policy)
    return again.policy


def prove(student, teacher, task, bounds, retain=0.8, episodes=150):
    settings = ProveSettings(retain=retain, max_episodes=episodes)
    return proof.prove(student, teacher.policy, task, member="m", played_by="numpy", bounds=bounds, settings=settings, run_seed=0,
                       teacher_mode="greedy", cache=ReturnCache())  # fmt: skip


def assert_untrained_is_refused(family, teacher, task, bounds):
    """The control: the same student before its first gradient step is not proved, so the proof could have failed."""
    fresh = families.build(family.members, family.ports, 0)
    fresh.normalisers |= family.normalisers
    student = NumpyPolicy(fresh.blueprint(family.members[0].name, task.name))
    assert prove(student, teacher, task, bounds, episodes=80).verdict == "not proved"


def scripted(task, rule, kind=None):
    """A teacher from a Python callable."""
    return teachers.load(rule, task.spec, kind=kind)


# ---------------------------------------------------------------- environments of the tiniest kind


class Recall(gym.Env):
    """A bit is shown at the first step only; from step 3 on the right action is that bit. Needs memory."""

    observation_space = gs.Box(-1, 1, (2,), np.float32)
    action_space = gs.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.bit, self.t = int(self.np_random.integers(2)), 0
        return np.array([2 * self.bit - 1, 0], np.float32), {}

    def step(self, action):
        self.t += 1
        reward = float(action == self.bit) if self.t > 2 else 0.0
        return np.array([0, self.t / 6], np.float32), reward, self.t == 6, False, {}


class Keyed(gym.Env):
    """A Dict: `goal` tells the action, `noise` and `privileged` are there to be looked away from."""

    observation_space = gs.Dict(
        {
            "goal": gs.Box(-1, 1, (2,), np.float32),
            "noise": gs.Box(-1, 1, (3,), np.float32),
            "privileged": gs.Discrete(4),
        }
    )
    action_space = gs.Discrete(4)

    def _look(self):
        goal = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        self.answer = int(goal[0] > 0) * 2 + int(goal[1] > 0)
        return {"goal": goal, "noise": self.np_random.uniform(-1, 1, 3).astype(np.float32), "privileged": self.answer}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._look(), {}

    def step(self, action):
        self.t += 1
        reward = float(action == self.answer)
        return self._look(), reward, False, self.t == 10, {}


class Factors(gym.Env):
    """MultiDiscrete([3, 2]): each factor has its own right answer."""

    observation_space = gs.Box(-1, 1, (2,), np.float32)
    action_space = gs.MultiDiscrete([3, 2])

    def _look(self):
        x = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        self.answer = (int(np.digitize(x[0], (-0.33, 0.33))), int(x[1] > 0))
        return x

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._look(), {}

    def step(self, action):
        self.t += 1
        reward = 0.5 * (action[0] == self.answer[0]) + 0.5 * (action[1] == self.answer[1])
        return self._look(), float(reward), False, self.t == 8, {}


# ---------------------------------------------------------------- the cases


def test_memoryless_mlp(tmp_path, cartpole_teacher):
    task = tasks.resolve("CartPole-v1")
    teacher = teachers.load(cartpole_teacher, task.spec)
    family, history = distill(tmp_path, [(task, teacher)], "mlp:8:tanh", steps=1000, lanes=2)
    assert history[-1] < 0.5 * history[0]
    rules = Bounds(0.0, 500.0, "one point a step, at most 500")
    found = prove(reloaded(tmp_path, family, task), teacher, task, rules, retain=0.9)
    assert found.verdict == "proved", found.reason
    assert_untrained_is_refused(family, teacher, task, rules)


def test_gru_with_resets_inside_a_batch(tmp_path):
    task = tasks.resolve(Recall)
    teacher = _sign_keeper(task)
    seeds = [seeding.episode_seed(0, "verify", i) for i in range(40)]
    assert rollout.play(teacher.policy, task, seeds).returns.mean() == 4.0
    pace = Pace(400, 256, 1e-2, 1.0, sequence=16, burn_in=4)
    family, _ = distill(tmp_path, [(task, teacher)], "gru:6", steps=600, lanes=6, rounds=3, pace=pace)
    first = open_dataset(tmp_path, task.name).first()
    assert first.sum() > len(first) / 7, "episodes of six steps: every stretch of sixteen rows holds resets"
    found = prove(reloaded(tmp_path, family, task), teacher, task, Bounds(0.0, 4.0, "four rewarded steps"))
    assert found.verdict == "proved", found.reason
    blind, _ = distill(tmp_path / "blind", [(task, teacher)], "mlp:16", steps=600, lanes=6, rounds=2)
    control = prove(
        reloaded(tmp_path / "blind", blind, task), teacher, task, Bounds(0.0, 4.0, "four rewarded steps"), episodes=80
    )
    assert control.verdict == "not proved", "without memory the bit is a coin"
    assert control.retention < 0.5


def _sign_keeper(task):
    """A GRU teacher: the update gate opens only at the first step (where the clock reads 0), so the bit stays."""
    weight_x = np.zeros((2, 3), np.float32)
    weight_x[0, 2] = 5.0  # candidate tanh(5 bit)
    weight_x[1, 1] = 80.0  # update gate: 1 (keep) once the clock runs, 0 at its start
    bias_x = np.array([0.0, -6.0, 0.0], np.float32)
    gru = Gru(weight_x, np.zeros((1, 3), np.float32), bias_x, np.zeros(3, np.float32))
    head = spaces.head_for(task.spec.action_space)
    return teachers.load(
        Blueprint(task.spec, head, (gru, Dense(np.array([[-6.0, 6.0]], np.float32), np.zeros(2, np.float32)))),
        task.spec,
    )


def test_dict_observation_with_a_view(tmp_path):
    task = tasks.resolve(Keyed)
    teacher = scripted(
        task, lambda obs: np.eye(4, dtype=np.float32)[np.asarray(obs["privileged"]).reshape(-1)] * 8, kind="categorical"
    )
    family, _ = distill(tmp_path, [(task, teacher)], "mlp:16", view=View(keys=("goal",)), gradient_steps=300)
    student = reloaded(tmp_path, family, task)
    assert student.blueprint.view.keys == ("goal",)
    assert student.blueprint.layers[0].weight.shape[0] == 2
    rules = Bounds(0.0, 10.0, "ten steps of 0 or 1")
    found = prove(student, teacher, task, rules)
    assert found.verdict == "proved", found.reason
    elsewhere, _ = distill(tmp_path / "noise", [(task, teacher)], "mlp:16", view=View(keys=("noise",)), rounds=2)
    control = prove(reloaded(tmp_path / "noise", elsewhere, task), teacher, task, rules, episodes=80)
    assert control.verdict == "not proved", "a view of noise teaches nothing"
    obs = {"goal": np.full((1, 2), 0.5, np.float32), "noise": np.zeros((1, 3), np.float32), "privileged": np.array([0])}
    changed = {**obs, "noise": np.ones((1, 3), np.float32), "privileged": np.array([3])}
    first = np.ones(1, bool)
    assert np.array_equal(student(obs, {}, first).params, student(changed, {}, first).params), "the view leaks"


def test_multidiscrete(tmp_path):
    task = tasks.resolve(Factors)

    def rule(obs):
        first, second = np.digitize(obs[:, 0], (-0.33, 0.33)), (obs[:, 1] > 0).astype(int)
        return np.concatenate([np.eye(3)[first], np.eye(2)[second]], axis=1).astype(np.float32) * 6

    teacher = scripted(task, rule, kind="multicategorical")
    family, _ = distill(tmp_path, [(task, teacher)], "mlp:16", gradient_steps=300)
    rules = Bounds(0.0, 8.0, "eight steps of 0 to 1")
    found = prove(reloaded(tmp_path, family, task), teacher, task, rules)
    assert found.verdict == "proved", found.reason
    assert_untrained_is_refused(family, teacher, task, rules)


def swing_up(obs):
    """Pump energy until there is enough to stand, then balance: pre-tanh means of a torque in -2 .. 2, and deviations."""
    x, y, speed = obs[:, 0].astype(float), obs[:, 1].astype(float), obs[:, 2].astype(float)
    energy = speed**2 / 2 + 15 * x  # 15 = 3 g / (2 l): upright at rest
    pump = 2.0 * speed * (15.5 - energy)
    balance = -(16 * np.arctan2(y, x) + 4 * speed)
    raw = np.where(x > 0.8, balance, np.where(np.abs(speed) < 0.1, 2.0, pump))
    return np.clip(raw, -2.5, 2.5)[:, None].astype(np.float32), np.full((len(x), 1), 0.3, np.float32)


def test_squashed_continuous(tmp_path):
    task = tasks.resolve("Pendulum-v1")
    teacher = scripted(task, swing_up, kind="squashed")
    assert teacher.policy.head.kind == "squashed"
    family, history = distill(tmp_path, [(task, teacher)], "mlp:32x32", lanes=2, steps=1600, gradient_steps=300)
    student = reloaded(tmp_path, family, task)
    assert student.head.kind == "tanh", "what only training needs is dropped"
    assert history[-1] < history[0]
    seen = open_dataset(tmp_path, task.name).column("obs")
    wanted, given = (
        distributions.act(p.head, p(seen, {}, np.ones(len(seen), bool)).params) for p in (teacher.policy, student)
    )
    assert np.abs(given).max() <= 2.0
    assert np.abs(wanted - given).mean() < 0.15  # of a range of 4
    rules = Bounds(-16.28 * 200, 0.0, "200 steps that cost at most pi^2 + 0.1 8^2 + 0.001 2^2")
    found = prove(student, teacher, task, rules, retain=0.85, episodes=400)
    assert np.mean(found.teacher_returns) > -300, "the teacher swings up"
    assert found.verdict == "proved", found.reason
    assert_untrained_is_refused(family, teacher, task, rules)


def test_digits(tmp_path):
    task = tasks.resolve("digits")
    teacher = scripted(task, nearest_neighbours(task), kind="probabilities")
    family, history = distill(
        tmp_path, [(task, teacher)], "mlp:32", rounds=3, lanes=16, steps=800, gradient_steps=300, hard=0.3
    )
    assert history[-1] < 0.5 * history[0]
    stored = open_dataset(tmp_path, task.name)
    assert not np.array_equal(stored.column("hard"), stored.column("teacher/params").argmax(axis=1)), (
        "two kinds of label"
    )
    student = reloaded(tmp_path, family, task)
    test = [seeding.episode_seed(0, "proof", i) for i in range(400)]
    assert rollout.play(student, task, test).returns.mean() > 0.9
    found = prove(student, teacher, task, task.bounds, retain=0.9, episodes=400)
    assert found.verdict == "proved", found.reason
    assert_untrained_is_refused(family, teacher, task, task.bounds)


def nearest_neighbours(task):
    """Cover and Hart (1967) on half of the training part: probabilities from the five nearest rows."""
    known, labels = task.inputs[: task.train_rows // 2], task.labels[: task.train_rows // 2]

    def rule(obs):
        distance = ((obs[:, None] - known) ** 2).sum(axis=2)
        votes = np.eye(10, dtype=np.float32)[labels[np.argsort(distance, axis=1)[:, :5]]].sum(axis=1) + 0.05
        return votes / votes.sum(axis=1, keepdims=True)

    return rule


def test_two_tasks_with_one_student(tmp_path):
    flat = tasks.resolve(lambda: gym.wrappers.FlattenObservation(Keyed()))
    flat = replace(flat, name="Flat", spec=replace(flat.spec, name="Flat"))

    class Signs(Factors):
        action_space = gs.Discrete(3)

        def step(self, action):
            self.t += 1
            reward = float(action == self.answer[0])
            return self._look(), reward, False, self.t == 8, {}

    signs = tasks.resolve(Signs)
    width = spaces.flat_size(flat.spec.observation_space)
    goal = scripted(
        flat, lambda o: np.eye(4, dtype=np.float32)[(o[:, 0] > 0) * 2 + (o[:, 1] > 0)] * 6, kind="categorical"
    )
    sign = scripted(
        signs, lambda o: np.eye(3, dtype=np.float32)[np.digitize(o[:, 0], (-0.33, 0.33))] * 6, kind="categorical"
    )
    family, _ = distill(tmp_path, [(flat, goal), (signs, sign)], "mlp:24x24", gradient_steps=600, rounds=3)
    stack = family.stack_of("mlp-24x24-s0")
    assert stack.shapes["stem0.weight"] == (width, 24)
    assert stack.shapes["stem1.weight"] == (2, 24)
    assert sum(name.startswith("trunk") for name in stack.shapes) == 2, "the trunk is shared"
    for task, teacher, high in ((flat, goal, 10.0), (signs, sign, 8.0)):
        rules = Bounds(0.0, high, "steps of 0 or 1")
        found = prove(reloaded(tmp_path, family, task), teacher, task, rules)
        assert found.verdict == "proved", (task.name, found.reason)
        assert_untrained_is_refused(family, teacher, task, rules)


@pytest.fixture
def cartpole_teacher():
    return Path(__file__).parent / "fixtures" / "cartpole_ppo_sb3.zip"
