"""Observations as batches: arrays, or dicts of arrays, with a leading axis B."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from limbeck.contracts import Observation, Spec


def empty_observation(spec: Spec, batch: int) -> Observation:
    """Zeros of the space's dtype with leading axis B."""
    space = spec.observation_space
    if isinstance(space, gym.spaces.Dict):
        return {k: np.zeros((batch, *(v.shape or ())), v.dtype) for k, v in space.spaces.items()}
    return np.zeros((batch, *(space.shape or ())), space.dtype)


def put_row(batch: Observation, row: int, obs: Any) -> None:
    if isinstance(batch, dict):
        for key, column in batch.items():
            column[row] = obs[key]
    else:
        batch[row] = obs


def copy_observation(obs: Observation) -> Observation:
    return {k: np.array(v) for k, v in obs.items()} if isinstance(obs, dict) else np.array(obs)


def take_rows(obs: Observation, rows: Any) -> Observation:
    return {k: v[rows] for k, v in obs.items()} if isinstance(obs, dict) else obs[rows]


def finite_rows(obs: Observation, batch: int) -> NDArray[np.bool_]:
    """[B] whether every number of a row is finite."""
    if isinstance(obs, dict):
        rows = np.ones(batch, bool)
        for column in obs.values():
            rows &= finite_rows(column, batch)
        return rows
    if not np.issubdtype(obs.dtype, np.floating):
        return np.ones(batch, bool)
    return np.asarray(np.isfinite(obs.reshape(batch, -1)).all(axis=1), bool).reshape(batch)
