"""What the tests of stages share."""

import pytest

from limbeck import cli, rollout


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """A check that distilling the LunarLander teacher so ends in one line, before anything is played or written."""

    def check(words, options, students=()):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(rollout, "play", None)  # nothing may be played
        members = ["--students", *students] if students else []
        code = cli.main(["distill", "bundled:ppo-lunar", "--env", "LunarLander-v3", *members, "--options", *options])
        error = capsys.readouterr().err.splitlines()[-1]
        assert code == 2, error
        assert words in error
        assert list(tmp_path.iterdir()) == []

    return check
