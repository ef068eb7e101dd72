"""What a policy says, in numpy: greedy and sampled actions, execution, divergences, and the stored form of labels.

A *said* action is what the distribution produced (an index, a mean, a pre-tanh value); the *executed* action is what
the environment receives (offset, clipped, squashed and scaled). Both are kept in data sets because copying the one
where the other is meant teaches the wrong label.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from limbeck.contracts import Array, Floats, Head, Mode
from limbeck.errors import InputError

LOG_STD_RANGE = (-20.0, 2.0)  # Stable-Baselines3's SAC clamp; outside it a Gaussian is numerically a point or flat
FORBIDDEN = -1e8  # logit or Q-value of an action that the mask forbids: finite, so that 0 times it is 0
PRE_TANH_LIMIT = 3.0  # beyond it tanh is within 0.5 % of its limit: methods.md 1.5 clamps teacher means here


# ---------------------------------------------------------------- actions


def said(head: Head, params: Floats, mode: Mode = "greedy", rng: np.random.Generator | None = None) -> Array:
    """[B, W] rows -> said actions: int64 [B] (one choice), int64 [B, n] (several), float32 [B, n] (continuous)."""
    if mode == "greedy":
        return greedy(head, params)
    if rng is None:
        raise InputError("sampled mode was asked for without a random generator.")
    return _sampled(head, params, rng)


def greedy(head: Head, params: Floats) -> Array:
    """[B, W] rows -> the likeliest said actions, as `said` gives them."""
    match head.kind:
        case "categorical" | "q":
            return params.argmax(axis=1)
        case "multicategorical":
            return np.stack([g.argmax(axis=1) for g in groups(head, params)], axis=1)
        case "bernoulli":
            return (params > 0).astype(np.int64)
    return params[:, : sum(head.sizes)]


def _sampled(head: Head, params: Floats, rng: np.random.Generator) -> Array:
    match head.kind:
        case "categorical":
            return _gumbel(params, rng)
        case "multicategorical":
            return np.stack([_gumbel(g, rng) for g in groups(head, params)], axis=1)
        case "bernoulli":
            return (rng.random(params.shape) < sigmoid(params)).astype(np.int64)
        case "gaussian" | "squashed":
            mean, log_std = np.split(params, 2, axis=1)
            noise = rng.standard_normal(mean.shape).astype(np.float32)
            return mean + np.exp(np.clip(log_std, *LOG_STD_RANGE)) * noise
    return greedy(head, params)  # q, deterministic and tanh heads describe no randomness


def _gumbel(logits: Floats, rng: np.random.Generator) -> NDArray[np.int64]:
    return (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)


def execute(head: Head, action: Array) -> Array:
    """Said actions [B, ...] -> the array the environment receives, [B, *head.shape]."""
    batch = action.shape[0]
    if head.discrete:
        start = np.asarray(head.start or 0, dtype=np.int64)
        return (action.reshape(batch, -1) + start).reshape(batch, *head.shape)
    low, high = bounds(head)
    values = action.reshape(batch, -1)
    if head.kind in ("squashed", "tanh"):
        values = low + np.float32(0.5) * (np.tanh(values) + np.float32(1.0)) * (high - low)
    return np.clip(values, low, high).astype(np.float32).reshape(batch, *head.shape)


def said_for(head: Head, executed: Array) -> Array:
    """Said actions [B, n] of a squashed or tanh head that execute to [B, n] within its bounds, but for the last millionth
    of the range at either end, where the pre-tanh value grows without limit; other heads say what is executed."""
    if head.kind not in ("squashed", "tanh"):
        return executed
    low, high = (bound.astype(np.float64) for bound in bounds(head))
    share = 2 * (executed - low) / np.maximum(high - low, np.finfo(np.float64).tiny) - 1
    return np.arctanh(np.clip(share, -1 + 2e-6, 1 - 2e-6)).astype(np.float32)


def bounds(head: Head) -> tuple[Floats, Floats]:
    """[n] bounds of the executed action; infinite where none were declared."""
    n = sum(head.sizes)
    low = np.asarray(head.low or [-np.inf] * n, np.float32)
    high = np.asarray(head.high or [np.inf] * n, np.float32)
    return low, high


def act(head: Head, params: Floats, mode: Mode = "greedy", rng: np.random.Generator | None = None) -> Array:
    """Rows -> executed actions."""
    return execute(head, said(head, params, mode, rng))


# ---------------------------------------------------------------- action masks


def masked(params: Floats, mask: NDArray[np.bool_]) -> Floats:
    """[B, W] rows in which the actions that are not allowed can neither be chosen nor drawn."""
    return np.where(mask, params, np.float32(FORBIDDEN))


# ---------------------------------------------------------------- the stored form


def canonical(head: Head, params: Floats) -> tuple[Floats, Floats | None]:
    """Label rows as they are stored, and V for Q heads: log-probabilities per group, or Q - max Q with V = max Q.

    Kept in float32 after centring in float64: centring keeps the greedy action and the top gap of Q-values of size
    1e3 with gaps of 1e-2, which float16 or uncentred arithmetic loses.
    """
    match head.kind:
        case "q":
            wide = params.astype(np.float64)
            top = wide.max(axis=1, keepdims=True)
            return (wide - top).astype(np.float32), top[:, 0].astype(np.float32)
        case "categorical" | "multicategorical":
            return np.concatenate([log_softmax(g) for g in groups(head, params)], axis=1), None
    return params.astype(np.float32), None


# ---------------------------------------------------------------- numbers about distributions


def kl(head: Head, p: Floats, q: Floats) -> NDArray[np.float64]:
    """[B] KL(p || q) in nats for two rows of the same head. Squashed: exact on the pre-tanh Gaussians, which share the
    bijection. q, deterministic and tanh rows describe no distribution: use `agreement` or the executed actions."""
    p, q = p.astype(np.float64), q.astype(np.float64)
    match head.kind:
        case "categorical" | "multicategorical":
            pairs = zip(groups(head, p), groups(head, q), strict=True)
            total = np.zeros(len(p))
            for left, right in pairs:
                log_p, log_q = log_softmax(left), log_softmax(right)
                total += (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
            return total
        case "bernoulli":
            prob = sigmoid(p)
            on, off = np.logaddexp(0, -q) - np.logaddexp(0, -p), np.logaddexp(0, q) - np.logaddexp(0, p)
            return (prob * on + (1 - prob) * off).sum(axis=1)
        case "gaussian" | "squashed":
            (mean_p, log_p), (mean_q, log_q) = np.split(p, 2, axis=1), np.split(q, 2, axis=1)
            log_p, log_q = np.clip(log_p, *LOG_STD_RANGE), np.clip(log_q, *LOG_STD_RANGE)
            ratio = (np.exp(2 * log_p) + (mean_p - mean_q) ** 2) / (2 * np.exp(2 * log_q))
            return (log_q - log_p + ratio - 0.5).sum(axis=1)
    raise InputError(
        f"a {head.kind} head describes no distribution, so it has no KL. Compare executed actions instead."
    )


def groups(head: Head, params: Floats) -> list[Floats]:
    """The logits of each independent choice: one group, or one per factor of a multicategorical head."""
    if head.kind != "multicategorical":
        return [params]
    return np.split(params, np.cumsum(head.sizes)[:-1], axis=1)


def log_softmax(logits: Floats) -> Floats:
    """Row-wise log-softmax, centred in float64 and returned in the input's dtype."""
    wide = logits.astype(np.float64)
    wide = wide - wide.max(axis=1, keepdims=True)
    return (wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))).astype(logits.dtype)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow."""
    return np.exp(-np.logaddexp(0, -x)).astype(x.dtype)
