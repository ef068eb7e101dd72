"""Rewards that know the teacher's value and still have the same optimal policies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from limbeck.contracts import Array


def shaped_reward(
    reward: Array, value: Array, next_value: Array, terminated: NDArray[np.bool_], gamma: float | Array
) -> NDArray[np.float64]:
    """r + gamma Phi(s') - Phi(s) with Phi = V_T: potential-based shaping, Ng, Harada & Russell 1999, eq. 2.

    reward, value = V_T(s) and next_value = V_T(s') [N] in one unit -> [N]. Phi(s') is 0 where the task itself ended
    (`terminated` [N]), whatever `next_value` says there; where a time limit cut the episode off it is V_T(s') of the state
    it was cut off in. Over an episode sum gamma^t r'_t = sum gamma^t r_t - V_T(s_0) + gamma^T V_T(s_T): no policy is
    preferred that was not before. So with `reward` the discounted sum of H steps, s' the state they end in and `gamma` [N] the
    H-th power of the discount it is the shaped sum of those H steps.

    >>> shaped_reward(np.array([1.0, 1.0]), np.array([4.0, 2.0]), np.array([2.0, 9.0]), np.array([False, True]), 0.5)
    array([-2., -1.])
    """
    after = np.where(terminated, 0.0, np.asarray(next_value, np.float64))
    return np.asarray(reward, np.float64) + gamma * after - np.asarray(value, np.float64)
