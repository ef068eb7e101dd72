"""Rows kept out of training, which weights are judged, and what is refused before anything is played."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from limbeck.dataset import Dataset
from limbeck.settings import ImitateSettings
from limbeck.stages import stopping
from limbeck.stages.scene import Progress


def test_whole_episodes_are_held_out_and_stay_so_as_rounds_are_added(tmp_path):
    data, before = Dataset(tmp_path, "toy"), None
    for number in range(30):
        first = np.arange(40) % 10 == 0
        data.add(number, {"first": first}, {})
        held = stopping.held_out(data, 0.2).numpy()
        assert before is None or np.array_equal(held[: len(before)], before)
        before = held
    episodes = held.reshape(-1, 10)
    assert (episodes.all(1) == episodes.any(1)).all()
    assert episodes[:, 0].sum() == 120 * 0.2
    assert not episodes[0, 0]
    assert stopping.held_out(data, 0.0) is None


def test_members_are_told_that_are_too_small():
    said, head = [], SimpleNamespace(discrete=True)
    recipe = SimpleNamespace(imitate=ImitateSettings())
    here = SimpleNamespace(
        run=SimpleNamespace(recipe=recipe, tell=lambda stage, text: said.append(text)),
        teacher=SimpleNamespace(policy=SimpleNamespace(head=head)),
    )
    taught = {
        "small": [0.3, 0.2, 0.2, 0.2, 0.2],
        "able": [0.3, 0.01, 0.01, 0.01, 0.01],
        "learning": [0.5, 0.4, 0.3, 0.2, 0.1],
    }
    stopping.tell_capacity(here, Progress(taught=taught))
    assert len(said) == 1
    assert said[0].startswith("small: KL 0.200 nat")


def test_the_family_is_judged_by_the_weights_asked_for():
    from limbeck.students.family import Family, Rows

    rows = Rows(None, [], torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 2))
    family = Family({}, {}, [rows])
    assert stopping.evaluated(family, keep_best=True) is family
    rows.beside |= {"average": torch.ones(1, 2), "best": torch.full((1, 2), 2.0)}
    assert stopping.evaluated(family, keep_best=False).stacks[0].theta.tolist() == [[1.0, 1.0]]
    assert stopping.evaluated(family, keep_best=True).stacks[0].theta.tolist() == [[2.0, 2.0]]
    assert rows.theta.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(("options", "words"), [
    (["imitate.stop=plateau", "collect.driver=teacher"], "here no student plays"),
    (["imitate.stop=plateau", "imitate.loss=1>0*kl + 0>1*kl_reverse"], "would end the schedule"),
    (["imitate.stop=validation"], "imitate.validation_share is 0"), (["imitate.keep_best=true"], "imitate.validation_share is 0"),
    (["imitate.shift=4"], "moves pictures"), (["imitate.priority=0.6", "students=gru:4"], "learns from sequences"),
    (["imitate.dropout=0.1", "students=linear"], "acts on hidden dense layers"), (["imitate.dropout=1"], "allowed 0 to 0.95"),
    (["collect.driver=offline", "collect.lmbda=0.5"], "leaves it no use"), (["collect.beta_schedule=constant"], "leaves it no use"),
    (["collect.driver=teacher", "collect.student_mode=sampled"], "leaves it no use"),
    (["collect.driver=auto", "collect.teacher_rounds=0"], "collect.teacher_rounds = 0"), (["collect.driver=auto", "collect.slots=1"], "takes two lanes"),
    (["imitate.stop=validation", "imitate.validation_share=0.2", "imitate.loss=anneal"], "would end the schedule"),
    (["imitate.keep_best=true", "imitate.validation_share=0.2", "imitate.loss=anneal"], "trades away"),
    (["imitate.stop=plateau", "collect.driver=auto"], "may find that the teacher drives"),
    (["students=tree:leaves=4", "imitate.stop=plateau"], "tree:leaves=4 take none"),
    (["students=rule:3", "imitate.stop=validation", "imitate.validation_share=0.2"], "rule:3 take none"),
    (["students=rule:3", "imitate.keep_best=true", "imitate.validation_share=0.2"], "rule:3 take none"),
    (["students=rule:3", "imitate.priority=0.6"], "rule:3 take none"), (["students=rule:3", "imitate.average=0.9"], "rule:3 take none"),
    (["students=tree:leaves=4", "collect.driver=auto"], "there are trees and rules alone"),
    (["imitate.loss=anneal", "collect.driver=teacher"], "Allowed: collect.driver=student, trb, beta or auto"),
    (["imitate.loss=anneal", "collect.driver=offline"], "on the student's own states"), (["imitate.loss=anneal", "collect.lmbda=0"], "with collect.lmbda=0"),
    (["imitate.loss=entropy_regularised", "collect.driver=auto", "collect.student_mode=sampled"], "collect.driver is auto"),
    (["collect.driver=offline", "collect.teacher_rounds=3", "env_steps=1000"], "may have 1"),
    (["collect.driver=offline", "collect.teacher_rounds=3", "seconds=60"], "may have 2"),
    (["collect.driver=auto", "imitate.rounds=1"], "there are 1"), (["collect.driver=auto", "collect.lmbda=0.5"], "chooses too"),
])  # fmt: skip
def test_it_is_refused_at_once(options, words, refused):
    refused(words, options)
