"""The network inside a state dict: which algorithm family it is, its actor and, where it values states, its critic.

    family                  actor                                        head                    activation
    PPO, A2C, TRPO          mlp_extractor.policy_net, action_net         by the action space     tanh
      recurrent             lstm_actor before them
      gSDE                  log_std [features, actions]                  gaussian or squashed
    DQN                     q_net.q_net                                  q                       relu
    QR-DQN                  quantile_net.quantile_net, quantiles meaned  q                       relu
    SAC, TQC, CrossQ        actor.latent_pi, actor.mu, actor.log_std     squashed                relu
    TD3, DDPG               actor.mu                                     tanh                    relu
    ARS                     action_net.0 ...                             q, tanh, deterministic  relu

Each behind its features extractor. Every tensor must have a place in its family's pattern, so that a network of
another kind is refused, not misread.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from limbeck.contracts import Array, Dense, Gsde, HeadKind, Layer
from limbeck.errors import InputError, printable
from limbeck.teachers.archive import listed
from limbeck.teachers.sb3 import weights as tensors
from limbeck.teachers.sb3.extractors import PATTERN, Extract
from limbeck.teachers.sb3.weights import SUPPORTED, Weights, behind, dense, lstm, normed_stack, open_ended, stack

_ACTIVATIONS = {
    "activation.ReLU": "relu", "activation.Tanh": "tanh", "activation.ELU": "elu", "activation.GELU": "gelu",
    "activation.LeakyReLU": "leaky_relu", "activation.SiLU": "silu", "activation.Sigmoid": "sigmoid",
    "activation.Hardtanh": "hardtanh", "activation.Softplus": "softplus", "linear.Identity": "identity",
}  # fmt: skip
_PART = r"\d+\.(weight|bias)"
_LINEAR = r"(weight|bias)"
_NORMED = r"\d+\.(weight|bias|scale|ra_mean|ra_var|steps)"  # of CrossQ too


@dataclass(frozen=True)
class Said:
    """What the settings and the task say that the weights do not."""

    action_space: gym.Space[Any]
    extract: Extract
    activation: str | None = None  # None: the family's default
    squash: bool | None = None  # None: not said
    use_expln: bool = False
    clip_mean: float = 2.0  # SAC's default
    norm_epsilon: float = 1e-3  # CrossQ's default
    linear_class: bool = False  # ARS's LinearPolicy, which does not squash


@dataclass(frozen=True)
class Network:
    """What a state dict turned out to be."""

    kind: HeadKind
    layers: tuple[Layer, ...]
    value_layers: tuple[Layer, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    markers: tuple[str, ...]  # tensors that, together, only this family has
    pattern: str  # every tensor's name matches
    activation: str
    build: Callable[[Weights, str, Said], Network]


def known(weights: Weights) -> bool:
    """Whether these are the weights of a Stable-Baselines3 policy, by their names."""
    return _family_name(weights) is not None


def family_of(weights: Weights, name: str) -> str:
    """The family whose marker is there. Raises InputError for all others and for tensors without a place in it."""
    found = _family_name(weights)
    if found is None:
        raise InputError(
            f"{printable(name)}: the weights {listed(tuple(weights), 4)} belong to no known policy. {SUPPORTED}"
        )
    stray = [key for key in weights if not re.fullmatch(FAMILIES[found].pattern, key)]
    if stray:
        raise InputError(
            f"{printable(name)}: {found} policy with {printable(stray[0])!r}{_hint(stray)}, which is not read here. {SUPPORTED}"
        )
    return found


def _family_name(weights: Weights) -> str | None:
    fits = (key for key, family in FAMILIES.items() if all(_has(weights, m) for m in family.markers))
    return next(fits, None)


def _has(weights: Weights, marker: str) -> bool:
    return any(re.fullmatch(marker, name) for name in weights)


def build(weights: Weights, said: Said, name: str) -> Network:
    """The actor (and critic, where it values states) as layers. Raises InputError for what does not fit together."""
    tensors.check_finite(weights, name)
    family = FAMILIES[family_of(weights, name)]
    try:
        return family.build(weights, said.activation or family.activation, said)
    except KeyError as error:
        raise InputError(f"{printable(name)}: tensor {error} is missing. Save the teacher again.") from error


def activation_of(stated: Any) -> str | None:
    """The activation that the settings print, None where they do not say."""
    if stated is None:
        return None
    found = re.fullmatch(r"<class 'torch\.nn\.modules\.(activation\.\w+|linear\.Identity)'>", str(stated))
    if found is None or found.group(1) not in _ACTIVATIONS:
        allowed = ", ".join(key.split(".")[1] for key in _ACTIVATIONS)
        raise InputError(f"activation {printable(stated)} is not supported. Allowed: torch.nn {allowed}.")
    return _ACTIVATIONS[found.group(1)]


# ---------------------------------------------------------------- PPO, A2C, TRPO, with and without memory


def _actor_critic(weights: Weights, activation: str, said: Said) -> Network:
    actor, critic = (_prefix(weights, side) for side in ("pi", "vf"))
    shared = stack(weights, "mlp_extractor.shared_net", activation)  # before version 1.8
    memory: list[Layer] = [*lstm(weights, "lstm_actor")]
    body = [*memory, *shared, *stack(weights, "mlp_extractor.policy_net", activation)]
    head = [*_critic_memory(weights, memory), *shared, *stack(weights, "mlp_extractor.value_net", activation)]
    kind, last, notes = _ending(weights, said)
    layers = said.extract(weights, actor).then([*body, last])
    value = said.extract(weights, critic).then([*head, dense(weights, "value_net")])
    return Network(kind, layers, value, notes)


def _prefix(weights: Weights, side: str) -> str:
    """The extractor of one side: versions before 1.8 have one for both."""
    own = f"{side}_features_extractor"
    return own if any(key.startswith(f"{own}.") for key in weights) else "features_extractor"


def _critic_memory(weights: Weights, shared: list[Layer]) -> list[Layer]:
    """The critic's own LSTM, a linear layer of its width, or the actor's."""
    if own := lstm(weights, "lstm_critic"):
        return [*own]
    return [dense(weights, "critic")] if "critic.weight" in weights else shared


def _ending(weights: Weights, said: Said) -> tuple[HeadKind, Layer, tuple[str, ...]]:
    """The head, the layer that says its row, and notes."""
    last, log_std = dense(weights, "action_net"), weights.get("log_std")
    kinds: dict[type, HeadKind] = {
        gym.spaces.Discrete: "categorical",
        gym.spaces.MultiDiscrete: "multicategorical",
        gym.spaces.MultiBinary: "bernoulli",
        gym.spaces.Box: "gaussian",
    }
    kind = next((k for t, k in kinds.items() if isinstance(said.action_space, t)), None)
    if kind is None:
        raise InputError(f"action space {said.action_space} is not supported. {SUPPORTED}")
    if (log_std is not None) != (kind == "gaussian"):
        raise InputError(
            f"the weights {'have' if log_std is not None else 'lack'} log_std, so the teacher was not trained on {said.action_space}. Give its own environment with --env."
        )
    if log_std is None:
        return kind, last, ()
    if log_std.ndim == 2:
        return "squashed" if said.squash else "gaussian", _gsde(last, log_std, said, math.inf), (_REDRAWN,)
    if log_std.shape != last.bias.shape:
        raise InputError(f"log_std of shape {log_std.shape} for {last.bias.size} actions. Save the teacher again.")
    return kind, _with_constant(last, log_std), ()


_REDRAWN = "its state-dependent exploration (gSDE) is drawn afresh at every step when it plays sampled"


def _gsde(mean: Dense, log_std: Array, said: Said, limit: float) -> Gsde:
    """The last layer of a policy with state-dependent exploration; log_std [features, actions], or [features, 1]."""
    if log_std.shape not in (mean.weight.shape, (mean.inputs, 1)) or log_std.dtype.kind != "f":
        raise InputError(
            f"log_std of shape {log_std.shape} for {mean.inputs} features and {mean.outputs} actions. Save the teacher again."
        )
    wide = log_std.astype(np.float64)
    spread = np.exp(np.minimum(wide, 0) if said.use_expln else wide)
    if said.use_expln:  # grows like log above zero (arXiv:2005.05719, 3.3), with the program's own epsilon
        spread = np.where(wide > 0, np.log1p(np.maximum(wide, 0) + 1e-6) + 1, spread)
    full = np.ascontiguousarray(np.broadcast_to(spread, mean.weight.shape), np.float32)
    if not np.isfinite(full).all():
        raise InputError(f"log_std up to {wide.max():.3g} makes an infinite spread. Take an earlier checkpoint.")
    return Gsde(mean.weight, mean.bias, full, limit)


def _with_constant(last: Dense, constant: Array) -> Dense:
    """The layer with outputs appended that do not depend on its input."""
    weight = np.concatenate([last.weight, np.zeros_like(last.weight)], axis=1)
    return Dense(weight, np.concatenate([last.bias, constant.astype(np.float32)]), "identity")


# ---------------------------------------------------------------- the others


def _q_network(weights: Weights, activation: str, said: Said) -> Network:
    layers = open_ended(stack(weights, "q_net.q_net", activation))
    return Network("q", said.extract(weights, "q_net.features_extractor").then([*layers]))


def _quantiles(weights: Weights, activation: str, said: Said) -> Network:
    """The mean over quantiles is linear, so it goes into the last layer, in float64."""
    *body, last = open_ended(stack(weights, "quantile_net.quantile_net", activation))
    actions = int(said.action_space.n) if isinstance(said.action_space, gym.spaces.Discrete) else 0
    if not actions or last.outputs % actions:
        raise InputError(
            f"the teacher's {last.outputs} quantiles do not belong to {said.action_space}. Give its own environment with --env."
        )
    weight = last.weight.astype(np.float64).reshape(last.inputs, -1, actions).mean(axis=1)
    bias = last.bias.astype(np.float64).reshape(-1, actions).mean(axis=0)
    mean = Dense(weight.astype(np.float32), bias.astype(np.float32))
    return Network("q", said.extract(weights, "quantile_net.features_extractor").then([*body, mean]))


def _soft(weights: Weights, activation: str, said: Said) -> Network:
    body, norm = normed_stack(weights, "actor.latent_pi", activation, said.norm_epsilon)
    notes: tuple[str, ...] = ()
    if "actor.log_std" in weights:  # gSDE, its mean clipped by a Hardtanh that holds no weights
        clipped = "actor.mu.0.weight" in weights
        mean = dense(weights, "actor.mu.0" if clipped else "actor.mu")
        last: Layer = _gsde(mean, weights["actor.log_std"], said, said.clip_mean if clipped else math.inf)
        notes = (_REDRAWN,)
        if norm is not None:  # its noise is made of normalised features
            identity = Dense(np.eye(mean.inputs, dtype=np.float32), np.zeros(mean.inputs, np.float32))
            body = [*body, behind(identity, norm)]
    else:
        mean, log_std = dense(weights, "actor.mu"), dense(weights, "actor.log_std")
        if mean.weight.shape != log_std.weight.shape:
            raise InputError(
                f"actor.mu has shape {mean.weight.shape}, actor.log_std {log_std.weight.shape}. Save the teacher again."
            )
        both = [np.concatenate([a, b], axis=-1) for a, b in ((mean.weight, log_std.weight), (mean.bias, log_std.bias))]
        last = behind(Dense(both[0], both[1]), norm)
    layers = said.extract(weights, "actor.features_extractor").then([*body, last])
    return Network("squashed", layers, notes=notes)


def _deterministic(weights: Weights, activation: str, said: Said) -> Network:
    layers = open_ended(stack(weights, "actor.mu", activation))
    return Network("tanh", said.extract(weights, "actor.features_extractor").then([*layers]))


def _random_search(weights: Weights, activation: str, said: Said) -> Network:
    body = open_ended(stack(weights, "action_net", activation, with_bias=False))
    layers = said.extract(weights, "features_extractor").then([*body])
    if isinstance(said.action_space, gym.spaces.Discrete):
        note = "its scores are neither probabilities nor values: only which one is largest was trained"
        return Network("q", layers, notes=(note,))
    squash = said.squash if said.squash is not None else not said.linear_class
    return Network("tanh" if squash else "deterministic", layers)


_CRITICS = rf"critic(_target)?\.(features_extractor\.{PATTERN}|qf\d+\.{_PART})"
_ACTOR = rf"actor\.features_extractor\.{PATTERN}"
_LSTM = r"lstm_(actor|critic)\.(weight|bias)_(ih|hh)_l\d+"
FAMILIES: dict[str, Family] = {
    "PPO or A2C": Family(
        (r"action_net\.weight",),
        rf"log_std|(action_net|value_net|critic)\.{_LINEAR}|mlp_extractor\.(shared|policy|value)_net\.{_PART}|{_LSTM}"
        rf"|((pi|vf)_)?features_extractor\.{PATTERN}",
        "tanh",
        _actor_critic,
    ),
    "ARS": Family((r"action_net\.0\.weight",), rf"action_net\.{_PART}", "relu", _random_search),
    "DQN": Family(
        (r"q_net\.q_net\.0\.weight",),
        rf"q_net(_target)?\.(q_net\.{_PART}|features_extractor\.{PATTERN})",
        "relu",
        _q_network,
    ),
    "QRDQN": Family(
        (r"quantile_net\.quantile_net\.0\.weight",),
        rf"quantile_net(_target)?\.(quantile_net\.{_PART}|features_extractor\.{PATTERN})",
        "relu",
        _quantiles,
    ),
    "SAC": Family(
        (r"actor\.log_std(\.weight)?", r"actor\.mu\.(0\.)?weight"),
        rf"{_ACTOR}|actor\.latent_pi\.{_NORMED}|critic\.qf\d+\.{_NORMED}|actor\.mu\.(0\.)?{_LINEAR}|actor\.log_std(\.{_LINEAR})?|{_CRITICS}"
        r"|log_ent_coef",
        "relu",
        _soft,
    ),
    "TD3": Family(
        (r"actor\.mu\.0\.weight",),
        rf"{_ACTOR}|actor_target\.features_extractor\.{PATTERN}|actor(_target)?\.mu\.{_PART}|{_CRITICS}",
        "relu",
        _deterministic,
    ),
}


def _hint(stray: list[str]) -> str:
    if any("features_extractor" in key for key in stray):
        return " (a features extractor of another kind)"
    return ""
