"""Playing a one-file policy: what is loaded must be one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from gymnasium import spaces as S

from limbeck import spaces
from limbeck.contracts import Spec
from limbeck.errors import InputError
from limbeck.runtimes import python_file

SPEC = Spec(S.Box(-1, 1, (2,)), S.Discrete(2))
HEAD = spaces.head_for(SPEC.action_space)


@pytest.mark.parametrize("text", ["def (", "import torch_that_is_absent", "x = 1", "1 / None", "\x00"])
def test_a_file_that_is_no_policy_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "policy.py").write_text(text)
    with pytest.raises(InputError, match="is damaged"):
        python_file.load(tmp_path / "policy.py", SPEC, HEAD)


def test_a_file_that_is_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no Python file"):
        python_file.load(tmp_path / "absent.py", SPEC, HEAD)


def test_two_files_do_not_meet(tmp_path: Path) -> None:
    text = "class Policy:\n    answer = {0}\n    def initial(self, batch):\n        return {{'is': self.answer}}\n"
    for name, answer in (("one", 1), ("two", 2)):
        (tmp_path / f"{name}.py").write_text(text.format(answer))
    one, two = (python_file.load(tmp_path / f"{name}.py", SPEC, HEAD) for name in ("one", "two"))
    assert (one.initial_state(1), two.initial_state(1)) == ({"is": 1}, {"is": 2})
    assert "limbeck_exported_policy" not in sys.modules
