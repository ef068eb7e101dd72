"""Refused before anything runs: no folder is made, no step is played."""

import pytest

from limbeck import cli, settings
from limbeck.errors import InputError
from limbeck.stages import refusals


@pytest.mark.parametrize(("options", "words"), [
    (["imitate.loss=cross_entropy"], "needs hard labels"), (["imitate.hard_weight=0.5"], "needs hard labels"),
    (["imitate.loss=q_kl"], "needs a teacher with q"), (["imitate.loss=gausian_kl"], "did you mean 'gaussian_kl'"),
    (["imitate.temperature=2"], "is for Q teachers"), (["export.targets=wsam"], "unknown target 'wsam'"),
    (["imitate.loss=anneal", "imitate.rounds=1"], "there is 1 round"), (["imitate.loss=1>0*kl"], "at the last round"),
    (["imitate.loss=js", "students=tree:leaves=4"], "has no effect on tree:leaves=4"), (["imitate.loss=kl + 2*nll", "students=rule:3"], "has no effect on rule:3"),
    (["imitate.loss=kl_gap + 3*hint@dense0=layers.0", "students=rule:3"], "has no effect on rule:3"), (["imitate.loss=kl_gap + js", "students=rule:3"], "has no effect on rule:3"),
    (["noise=0.1", "students=rule:3"], "noise = 0.1 is about gradient steps"),
    (["indices=0,99"], "view index 99"), (["keys=image"], "need a Dict observation"), (["students=mpl:8"], "did you mean 'mlp'"),
])  # fmt: skip
def test_it_is_refused_at_once(options, words, refused):
    refused(words, options)


GIVEN = {
    "stop": "plateau", "keep_best": "true", "priority": "0.6", "shift": "4", "weight_decay": "0.1", "dropout": "0.1",
    "adversarial": "0.5", "average": "0.9", "inherit": "teacher", "freeze": "dense0", "adapt": "r2", "assistant": "0.3",
    "population": "true",
}  # fmt: skip


@pytest.mark.parametrize("name", refusals.STEPS_ALONE)
def test_what_steps_alone_obey_is_refused_without_them(name):
    recipe = settings.recipe_from(
        {"teacher": "t", "env": "e", "students": ["tree:leaves=4", "rule:3"], "imitate": {name: as_given(name)}}
    )
    with pytest.raises(
        InputError, match=rf"imitate\.{name} = .* is about gradient steps, and tree:leaves=4, rule:3 take none"
    ):
        refusals.refuse(recipe, None, None)  # whatever the task and the teacher are


def as_given(name):
    return [GIVEN[name]] if name == "freeze" else GIVEN[name]


def test_a_target_whose_library_is_absent_is_refused_at_once(tmp_path, monkeypatch, capsys):
    from limbeck.exporters import onnx

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(onnx, "missing", lambda: "onnx is not installed")
    assert cli.main(["distill", "bundled:ppo-lunar", "--env", "LunarLander-v3"]) == 2
    assert "target onnx cannot be made here: onnx is not installed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
