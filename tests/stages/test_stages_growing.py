"""What a run says of trees and rules before it grows them."""

from pathlib import Path

import family_runs

FIXTURES = Path(__file__).parent.parent / "fixtures"


def test_a_run_says_that_grown_students_follow_no_loss(tmp_path, monkeypatch):
    told: list[str] = []
    options = ["imitate.rounds=1", "imitate.gradient_steps=2", "imitate.loss=js", "grow.samples=500"]
    monkeypatch.setattr(family_runs, "silent", lambda stage, text: told.append(text))
    teacher = FIXTURES / "sb3_a2c_cartpole.zip"
    for name, students in (("both", ["tree:leaves=4", "mlp:4"]), ("trained", ["mlp:4"])):
        told.clear()
        family_runs.imitated(tmp_path / name, teacher, "CartPole-v1", students, options)
        said = any("trees and rules imitate the teacher's greedy action" in text for text in told)
        assert said == ("tree:leaves=4" in students)
