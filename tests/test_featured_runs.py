"""Whole runs whose losses read the teacher's layers and value: what they own is left behind, and a killed run ends the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_cases import fingerprint, killed_at, limbeck

from limbeck.dataset import open_dataset

FIXTURES = Path(__file__).parent / "fixtures"
FAST = [
    "imitate.rounds=3", "imitate.gradient_steps=8", "collect.steps=128", "collect.slots=4", "race.rounds=2", "race.episodes=2",
    "race.final_episodes=2", "verify.episodes=4", "verify.random_episodes=8", "prove.max_episodes=16", "prove.chunk=8",
    "prove.bound_episodes=10", "polish.enabled=false", "export.targets=c", "export.golden_steps=16",
]  # fmt: skip
HINTED = "imitate.loss=kl + 1*hint@dense0=mlp_extractor.policy_net.1 + 0.5*value"


def command(folder: Path, loss: str) -> list[str]:
    teacher, options = str(FIXTURES / "cartpole_ppo_sb3.zip"), [*FAST, loss]
    return ["distill", teacher, "--env", "CartPole-v1", "--students", "mlp:8", "--accept-teacher", "--out", str(folder), "--options", *options]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_losses_own_is_left_behind_and_a_killed_run_ends_the_same(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("plain", "hinted", "killed")}
    for name, loss in (("plain", "imitate.loss=kl"), ("hinted", HINTED)):
        done = limbeck(*command(folders[name], loss))
        assert done.returncode == 0, done.stderr
    sizes = {
        name: {p.name: p.stat().st_size for p in folder.glob("students/*/*") if p.suffix == ".safetensors"}
        for name, folder in folders.items()
    }
    assert sizes["plain"] == sizes["hinted"] != {}, "projectors and value heads are not part of a student"
    layer = open_dataset(folders["hinted"] / "dataset", "CartPole-v1").column("feature/mlp_extractor.policy_net.1")
    assert layer.shape[1:] == (64,)
    killed = killed_at("after:checkpoints/round-000001:1", *command(folders["killed"], HINTED))
    assert killed.returncode == -9
    assert limbeck(*command(folders["killed"], HINTED)).returncode == 0
    found = {name: fingerprint(folders[name]) for name in ("hinted", "killed")}
    assert found["killed"] == found["hinted"]
