"""Refused before anything runs: no folder is made, no step is played."""

import pytest

from limbeck import cli, rollout


@pytest.mark.parametrize(("options", "words"), [
    (["imitate.loss=cross_entropy"], "needs hard labels"), (["imitate.hard_weight=0.5"], "needs hard labels"),
    (["imitate.loss=q_kl"], "needs a teacher with q"), (["imitate.loss=gausian_kl"], "did you mean 'gaussian_kl'"),
    (["imitate.temperature=2"], "is for Q teachers"), (["export.targets=wsam"], "unknown target 'wsam'"),
    (["indices=0,99"], "view index 99"), (["keys=image"], "need a Dict observation"), (["students=mpl:8"], "did you mean 'mlp'"),
])  # fmt: skip
def test_it_is_refused_at_once(options, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rollout, "play", None)  # nothing may be played
    code = cli.main(["distill", "bundled:ppo-lunar", "--env", "LunarLander-v3", "--options", *options])
    error = capsys.readouterr().err.splitlines()[-1]
    assert code == 2, error
    assert words in error
    assert list(tmp_path.iterdir()) == []


def test_a_target_whose_library_is_absent_is_refused_at_once(tmp_path, monkeypatch, capsys):
    from limbeck.exporters import onnx

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(onnx, "missing", lambda: "onnx is not installed")
    assert cli.main(["distill", "bundled:ppo-lunar", "--env", "LunarLander-v3"]) == 2
    assert "target onnx cannot be made here: onnx is not installed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
