"""Collection: who drives, what is stored, masks of the three autoreset modes, blending, purity of a round."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from limbeck import collection, distributions, spaces, tasks
from limbeck.collection import BLEND, STUDENT, TEACHER, Plan
from limbeck.contracts import Blueprint, Dense, Head, View
from limbeck.runtimes.numpy import NumpyPolicy


class Counter(gym.Env):
    """The observation tells the episode's seed-born id and the step; ends after 5 steps by termination or truncation."""

    observation_space = gym.spaces.Box(0, 1e6, (2,), np.float64)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = float(self.np_random.integers(1000)), 0
        return np.array([self.episode, 0.0]), {}

    def step(self, action):
        self.t += 1
        return (
            np.array([self.episode, self.t]),
            float(action),
            self.t == 5 and self.episode % 2 == 0,
            self.t == 5 and self.episode % 2 == 1,
            {},
        )


def constant(task, action, name="p"):
    """A policy that always says `action`."""
    head = spaces.head_for(task.spec.action_space)
    bias = np.zeros(head.width, np.float32)
    bias[action] = 4.0
    size = spaces.flat_size(task.spec.observation_space)
    return NumpyPolicy(Blueprint(task.spec, head, (Dense(np.zeros((size, head.width), np.float32), bias),), name=name))


def vector_task(mode):
    return tasks.resolve(gym.vector.SyncVectorEnv([Counter] * 4, autoreset_mode=mode))


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_reset_rows_never_reach_the_data_and_rows_chain(mode):
    task = vector_task(mode)
    columns = collection.collect(task, constant(task, 0), [constant(task, 1)], Plan(97, 4, "student"), 0, 0).columns
    obs, first = columns["obs"], columns["first"]
    assert (obs[:, 1] < 5).all(), "an observation after the end of an episode was stored"
    follows = ~first[1:]
    assert (obs[1:, 0][follows] == obs[:-1, 0][follows]).all(), "a row follows one of another episode"
    assert (obs[1:, 1][follows] == obs[:-1, 1][follows] + 1).all()
    ended = columns["terminated"] | columns["truncated"]
    assert (obs[:, 1][ended] == 4).all()
    assert (columns["terminated"] == (ended & (obs[:, 0] % 2 == 0))).all()
    assert ended.sum() > 10


def test_the_three_autoreset_modes_give_the_same_episodes():
    played = {}
    for mode in AutoresetMode:
        task = vector_task(mode)
        c = collection.collect(task, constant(task, 0), [constant(task, 1)], Plan(80, 4, "student"), 0, 0).columns
        ends = c["terminated"] | c["truncated"]
        played[mode] = set(c["obs"][ends][:, 0].tolist())
    shortest = min(played.values(), key=len)
    assert len(shortest) > 5
    assert all(shortest <= episodes for episodes in played.values())


def test_a_round_is_a_pure_function_of_its_number():
    task = tasks.resolve("CartPole-v1")
    one, two, other = (
        collection.collect(task, constant(task, 0), [constant(task, 1)], Plan(100, 4, "student"), n, 7).columns
        for n in (3, 3, 4)
    )
    assert all(np.array_equal(one[k], two[k]) for k in one)
    assert not np.array_equal(one["obs"][:4], other["obs"][:4])


def test_lanes_are_dealt_among_the_members_and_change_with_the_round():
    task = tasks.resolve("CartPole-v1")
    members = [constant(task, 0), constant(task, 1)]
    seen = {}
    for number in (0, 1):
        c = collection.collect(task, members[0], members, Plan(30, 3, "student"), number, 0).columns
        starts = np.flatnonzero(c["first"])
        seen[number] = (c["action"] == 0).mean()
        assert len(starts) >= 3
    assert 0.5 < seen[0] < 0.8
    assert 0.2 < seen[1] < 0.5


def test_labels_are_the_teachers_whoever_drives():
    task = tasks.resolve("CartPole-v1")
    for driver in ("student", "teacher", "beta", "trb"):
        c = collection.collect(
            task, constant(task, 0), [constant(task, 1)], Plan(60, 2, driver, beta=0.5, trust=0.1), 0, 0
        )
        assert (c.columns["teacher/params"].argmax(1) == 0).all()
        assert c.columns["teacher/params"].dtype == np.float32
        assert c.teacher_queries == len(c.columns["first"]) == c.env_steps
    assert set(np.unique(c.columns["driver"])) == {BLEND}


def test_beta_mixes_teacher_and_student_in_proportion():
    task = tasks.resolve("CartPole-v1")
    c = collection.collect(task, constant(task, 0), [constant(task, 1)], Plan(3000, 8, "beta", beta=0.3), 0, 0).columns
    share = (c["driver"] == TEACHER).mean()
    assert abs(share - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 3000)
    assert ((c["driver"] == TEACHER) == (c["action"] == 0)).all()
    assert ((c["driver"] == STUDENT) == (c["action"] == 1)).all()


def test_trust_region_takes_the_largest_share_that_fits():
    rng, head = np.random.default_rng(0), Head("categorical", (4,))
    student, teacher = (rng.normal(size=(200, 4)).astype(np.float32) * 3 for _ in range(2))
    mixed = collection.trusted_logits(head, student, teacher, 0.1)
    kl = distributions.kl(head, mixed, student)
    whole = distributions.kl(head, teacher, student) <= 0.1
    assert (kl <= 0.1 + 1e-5).all()
    assert np.allclose(kl[~whole], 0.1, atol=2e-3)
    assert np.allclose(mixed[whole], teacher[whole])
    assert np.allclose(collection.trusted_logits(head, student, teacher, 1e9), teacher, atol=1e-5)


def test_trust_region_for_points_has_its_closed_form():
    head = Head("deterministic", (2,), (-1.0, -1.0), (1.0, 1.0))
    shift = collection.trusted_shift(np.array([[0.8, 0.0], [0.01, 0.0]], np.float32), 0.5, head)
    assert np.allclose(shift, [[0.2, 0.0], [0.01, 0.0]], atol=1e-6)  # s = 2 / 10, a d = s sqrt(2 * .5)


def test_said_and_executed_actions_are_both_kept():
    task = tasks.resolve("Pendulum-v1")
    head = spaces.head_for(task.spec.action_space)
    big = NumpyPolicy(Blueprint(task.spec, head, (Dense(np.zeros((3, 1), np.float32), np.array([9.0], np.float32)),)))
    c = collection.collect(task, big, [big], Plan(20, 2, "student"), 0, 0).columns
    assert (c["action"] == 9.0).all()
    assert (c["executed"] == 2.0).all()


def test_a_teacher_with_memory_labels_in_step_with_its_memory():
    task = tasks.resolve("CartPole-v1")
    rng = np.random.default_rng(0)
    layers = (Dense(rng.normal(size=(12, 2)).astype(np.float32), np.zeros(2, np.float32)),)
    teacher = NumpyPolicy(Blueprint(task.spec, spaces.head_for(task.spec.action_space), layers, View(history=3)))
    c = collection.collect(task, teacher, [constant(task, 1)], Plan(120, 2, "student"), 0, 0).columns
    state, wanted = teacher.initial_state(1), []
    for obs, first in zip(c["obs"], c["first"], strict=True):
        output = teacher(obs[None], state, np.array([first]))
        state = output.state
        wanted.append(distributions.canonical(teacher.head, output.params)[0][0])
    assert np.allclose(c["teacher/params"], np.stack(wanted), atol=1e-5)


def test_a_labelled_set_stores_its_answers():
    task = tasks.labelled("toy", np.eye(16), np.arange(16) % 2)
    c = collection.collect(task, constant(task, 0), [constant(task, 1)], Plan(40, 4, "student"), 0, 0).columns

    right = {tuple(x): y for x, y in zip(task.inputs, task.labels, strict=True)}
    assert all(right[tuple(x)] == y for x, y in zip(c["obs"], c["hard"], strict=True))
    assert ((c["reward"] == 1.0) == (c["hard"] == 1)).all()


def network(task, kind, seed=0, noise=0.0):
    """One random layer with a head of that kind; standard deviations of e**noise where it has them."""
    base = spaces.head_for(task.spec.action_space, kind)
    width = base.width
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(spaces.flat_size(task.spec.observation_space), width)).astype(np.float32)
    bias = np.zeros(width, np.float32)
    if kind in ("squashed", "gaussian"):
        weight[:, width // 2 :], bias[width // 2 :] = 0, noise
    return NumpyPolicy(Blueprint(task.spec, base, (Dense(weight, bias),)))


@pytest.mark.parametrize("kind", ["squashed", "tanh", "gaussian", "deterministic"])
def test_what_is_said_for_an_executed_action_executes_to_it(kind):
    head = Head(kind, (2,), (-2.0, 0.0), (2.0, 1.0), shape=(2,))
    wanted = np.random.default_rng(0).uniform(head.low, head.high, (500, 2)).astype(np.float32)
    wanted[0], wanted[1] = head.low, head.high
    got = distributions.execute(head, distributions.said_for(head, wanted))
    assert np.abs(got - wanted).max() < 1e-5


@pytest.mark.parametrize("kind", ["squashed", "tanh", "gaussian"])
def test_random_actions_are_uniform_in_what_is_executed(kind):
    task = tasks.resolve("Pendulum-v1")
    plan = Plan(2000, 4, "teacher", random_share=1.0)
    executed = collection.collect(task, network(task, kind), [], plan, 0, 0).columns["executed"][:, 0]
    counts = np.histogram(executed, 10, (-2, 2))[0]
    assert counts.sum() == 2000
    assert ((counts - 200) ** 2 / 200).sum() < 33.7  # chi-square, 9 degrees of freedom, 1 in 10,000


def test_a_driving_teacher_acts_in_its_own_mode():
    task = tasks.resolve("Pendulum-v1")
    teacher, student = network(task, "squashed", noise=-1.0), network(task, "squashed", 1)
    drawn = {}
    for mode in ("greedy", "sampled"):
        c = collection.collect(
            task, teacher, [student], Plan(400, 4, "beta", beta=1.0, teacher_mode=mode), 0, 0
        ).columns
        drawn[mode] = c["action"] - np.clip(c["teacher/params"][:, :1], -3, 3)
    assert np.abs(drawn["greedy"]).max() < 1e-5
    assert drawn["sampled"].std() > 0.2  # e**-1, less what the clipping to [-3, 3] takes


def test_blending_with_a_q_teacher_is_at_the_temperature_the_student_learns():
    task = tasks.resolve("CartPole-v1")
    q = Head("q", (2,))
    teacher = NumpyPolicy(
        Blueprint(task.spec, q, (Dense(np.zeros((4, 2), np.float32), np.array([0, 100], np.float32)),))
    )
    level = NumpyPolicy(
        Blueprint(
            task.spec,
            spaces.head_for(task.spec.action_space),
            (Dense(np.zeros((4, 2), np.float32), np.zeros(2, np.float32)),),
        )
    )
    for tau, share in ((1.0, 1.0), (100.0, 1 / (1 + np.exp(-1)))):
        plan = Plan(2000, 4, "trb", trust=100.0, temperature=tau)
        c = collection.collect(task, teacher, [level], plan, 0, 0).columns
        assert abs((c["action"] == 1).mean() - share) <= 5 * np.sqrt(share * (1 - share) / 2000)


@pytest.mark.parametrize(("kind", "unit"), [("q", 1.0), ("categorical", 1.0), ("categorical", 4.0)])
def test_blending_reads_students_in_their_own_unit(kind, unit):
    """A student without errors: whatever it may add, it plays softmax(Q / tau), not its greedy action, nor softmax(Q)."""
    task, tau, q = tasks.resolve("CartPole-v1"), 100.0, np.array([0, 100], np.float32)

    def states(head, row):
        return NumpyPolicy(Blueprint(task.spec, head, (Dense(np.zeros((4, 2), np.float32), row),)))

    student = states(Head(kind, (2,)), q / np.float32(unit))
    share = 1 / (1 + np.exp(-1))
    for trust in (0.0, 100.0):
        plan = Plan(2000, 4, "trb", trust=trust, temperature=tau, unit=unit)
        c = collection.collect(task, states(Head("q", (2,)), q), [student], plan, 0, 0).columns
        assert abs((c["action"] == 1).mean() - share) <= 5 * np.sqrt(share * (1 - share) / 2000)


def test_students_drive_their_share_of_the_lanes_and_the_teacher_the_rest():
    task = tasks.resolve("CartPole-v1")
    members = [constant(task, 1), constant(task, 1)]
    plan = Plan(400, 4, "student", lmbda=0.5, members=(0, 1))
    c = collection.collect(task, constant(task, 0), members, plan, 0, 0).columns
    assert (c["driver"] == STUDENT).mean() == pytest.approx(0.5, abs=0.02)
    assert ((c["driver"] == STUDENT) == (c["action"] == 1)).all()
    assert ((c["driver"] == TEACHER) == (c["member"] == -1)).all()
    driven = c["member"][c["driver"] == STUDENT]
    assert set(driven) == {0, 1}, "all members drive, whatever the share"
    assert (c["teacher/params"].argmax(1) == 0).all()


def test_the_column_member_names_who_drove_the_lane():
    task = tasks.resolve("CartPole-v1")
    members = [constant(task, 0), constant(task, 1)]
    for number in (0, 1):
        c = collection.collect(task, members[0], members, Plan(90, 3, "student", members=(0, 1)), number, 0).columns
        assert (c["member"] == c["action"]).all()
    assert "member" not in collection.collect(task, members[0], members, Plan(9, 3, "student"), 0, 0).columns


def test_students_sample_where_they_are_asked_to():
    task = tasks.resolve("CartPole-v1")
    plan = Plan(3000, 8, "student", student_mode="sampled")
    c = collection.collect(task, constant(task, 0), [constant(task, 1)], plan, 0, 0).columns
    share = 1 / (1 + np.exp(-4.0))  # logits 0 and 4
    assert abs((c["action"] == 1).mean() - share) < 5 * np.sqrt(share * (1 - share) / 3000)
