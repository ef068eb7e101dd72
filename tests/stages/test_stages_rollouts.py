"""Costs to come of a student's own episodes: against the plain double sum, and whom a row speaks for."""

from types import SimpleNamespace

import numpy as np
import torch

from limbeck import batches, collection, distributions, imitation, spaces, tasks
from limbeck.collection import Plan
from limbeck.contracts import Batch, Blueprint, Dense
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.stages import rollouts


def linear(task, seed):
    """A random linear policy of CartPole that now and then does either thing."""
    rng, head = np.random.default_rng(seed), spaces.head_for(task.spec.action_space)
    layer = Dense(rng.normal(size=(4, 2)).astype(np.float32), rng.normal(size=2).astype(np.float32))
    return NumpyPolicy(Blueprint(task.spec, head, (layer,)))


def played(number=1):
    task = tasks.resolve("CartPole-v1")
    teacher, students = linear(task, 0), [linear(task, 1), linear(task, 2)]
    plan = Plan(300, 6, "student", lmbda=0.5, student_mode="sampled", members=(0, 2))
    columns = collection.collect(task, teacher, students, plan, number, 0).columns
    return teacher, students, rollouts.finished(columns, teacher.head, 1.0, 0.9)


def test_it_is_the_discounted_sum_of_centred_costs_to_the_episodes_end():
    _, students, columns = played()
    assert "student/params" not in columns
    assert set(np.unique(columns["member"])) == {-1, 0, 2}
    p = np.exp(columns["teacher/params"].astype(np.float64))
    cost, log_q = np.zeros(len(p)), np.zeros((len(p), 2))
    for place, policy in ((0, students[0]), (2, students[1])):
        mine = np.flatnonzero(columns["member"] == place)
        said = policy(columns["obs"][mine], policy.initial_state(len(mine)), np.ones(len(mine), bool)).params
        log_q[mine] = distributions.log_softmax(said.astype(np.float64))
        cost[mine] = -(np.exp(log_q[mine]) * np.log(p[mine])).sum(1)
        cost[mine] -= cost[mine].mean()
    ends = np.append(np.flatnonzero(columns["first"])[1:], len(p))
    for t in range(len(p)):
        end = ends[np.searchsorted(ends, t, side="right")]
        wanted = sum(0.9 ** (k - t) * cost[k] for k in range(t + 1, end))
        own = columns["member"][t] >= 0
        assert np.isclose(columns["to_go"][t], wanted if own else 0.0, atol=1e-4)
        assert np.isclose(columns["log_behaviour"][t], log_q[t, columns["action"][t]] if own else 0.0, atol=1e-5)


def test_the_teachers_rounds_say_nothing_of_students():
    task = tasks.resolve("CartPole-v1")
    plan = Plan(60, 2, "teacher", members=(0,))
    columns = collection.collect(task, linear(task, 0), [linear(task, 1)], plan, 0, 0).columns
    found = rollouts.finished(columns, linear(task, 0).head, 1.0, 0.9)
    assert (found["member"] == -1).all()
    assert not found["to_go"].any()


def test_every_member_of_a_stack_gets_its_own_future():
    _, _, columns = played()
    names = ["mlp-4-s0", "mlp-4-s1", "mlp-4-s2"]
    family = SimpleNamespace(members=[SimpleNamespace(name=names[k]) for k in (0, 2)])
    data = SimpleNamespace(column=columns.__getitem__)
    here = SimpleNamespace(run=SimpleNamespace(recipe=SimpleNamespace(students=("mlp:4@3",))))
    labels, _ = rollouts.labels(here, family, data, (), None)
    batch = Batch("toy", torch.empty(0), None, None, {key: value[None] for key, value in labels.items()})
    rows = SimpleNamespace(members=family.members)
    future = imitation._with_own(rows, batch).labels["to_go"][:, 0].numpy()
    assert future.shape == (2, len(columns["first"]))
    for k, place in enumerate((0, 2)):
        mine = columns["member"] == place
        assert np.array_equal(future[k][mine], columns["to_go"][mine])
        assert not future[k][~mine].any()
        assert future[k][mine].any()
    assert batches.OF_MEMBER in next(key for key in labels if key.startswith("to_go"))
