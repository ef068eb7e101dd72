"""Names of actions: those written down are those that the environment itself tells."""

from __future__ import annotations

import gymnasium as gym
import pytest

from limbeck.reporting import naming

LETTERS = {"n": "nothing", "l": "left", "u": "up", "r": "right", "d": "down", "f": "fire"}  # of MinAtar's action_map


@pytest.mark.parametrize("version", ["v0", "v1"])
@pytest.mark.parametrize("game", ["Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders"])
def test_actions_of_minatar_are_those_that_its_games_tell(game: str, version: str) -> None:
    minatar = pytest.importorskip("minatar.gym", reason="no MinAtar: pip install minatar")
    name = f"MinAtar/{game}-{version}"
    if name not in gym.registry:
        minatar.register_envs()
    env = gym.make(name, disable_env_checker=True).unwrapped
    said = [LETTERS[env.game.env.action_map[i]] for i in env.action_set]
    assert [naming.action_name(name, str(i)) for i in range(len(said))] == said


def test_a_game_that_nobody_wrote_down_keeps_its_numbers() -> None:
    assert naming.action_name("MinAtar/Pong-v0", "2") == "2"
