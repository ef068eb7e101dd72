"""The network inside a Stable-Baselines3 state dict: which algorithm family it is and the dense layers of its actor.

    family          actor                                    head                      default activation
    PPO, A2C        mlp_extractor.policy_net, action_net     by the action space       tanh
    DQN             q_net.q_net                              q                         relu
    SAC             actor.latent_pi, actor.mu, .log_std      squashed                  relu
    TD3, DDPG       actor.mu                                 tanh                      relu

Every tensor must have a place in its family's pattern, so that a network of another kind is refused, not misread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from limbeck.contracts import Array, Dense, HeadKind, Layer
from limbeck.errors import InputError, printable
from limbeck.teachers.archive import listed

SUPPORTED = "Allowed: MLP policies of PPO, A2C, DQN, SAC and TD3 (MlpPolicy, or MultiInputPolicy on vectors). For anything else pass a torch.nn.Module or a callable in Python."
_ACTIVATIONS = {
    "activation.ReLU": "relu", "activation.Tanh": "tanh", "activation.ELU": "elu", "activation.GELU": "gelu",
    "activation.LeakyReLU": "leaky_relu", "activation.SiLU": "silu", "activation.Sigmoid": "sigmoid",
    "activation.Hardtanh": "hardtanh", "linear.Identity": "identity",
}  # fmt: skip
_PART = r"\d+\.(weight|bias)"
_LINEAR = r"(weight|bias)"


@dataclass(frozen=True)
class Network:
    """What a state dict turned out to be."""

    kind: HeadKind
    layers: tuple[Layer, ...]
    value_layers: tuple[Layer, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    marker: str  # a tensor that only this family has
    pattern: str  # every tensor's name matches
    activation: str
    build: Callable[[Mapping[str, Array], str, gym.Space[Any], bool], Network]


def family_of(weights: Mapping[str, Array], name: str) -> str:
    """The family whose marker is there. Raises InputError for all others and for tensors without a place in it."""
    found = next((key for key, family in FAMILIES.items() if family.marker in weights), None)
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


def build(
    weights: Mapping[str, Array], activation: str | None, action_space: gym.Space[Any], squash: bool, name: str
) -> Network:
    """The actor (and critic, where it values states) as dense layers. `activation` None takes the family's default."""
    check_finite(weights, name)
    family = FAMILIES[family_of(weights, name)]
    try:
        return family.build(weights, activation or family.activation, action_space, squash)
    except KeyError as error:
        raise InputError(f"{printable(name)}: tensor {error} is missing. Save the teacher again.") from error


def check_finite(weights: Mapping[str, Array], name: str) -> None:
    for key, array in weights.items():
        if not np.isfinite(array).all():
            bad = int((~np.isfinite(array)).sum())
            raise InputError(
                f"{printable(name)}: {printable(key)} holds {bad} NaN or infinite numbers of {array.size}. Take an earlier checkpoint."
            )


def activation_of(policy_kwargs: Any) -> str | None:
    """The activation that the settings print, None where they do not say."""
    stated = policy_kwargs.get("activation_fn") if isinstance(policy_kwargs, Mapping) else None
    if stated is None:
        return None
    found = re.fullmatch(r"<class 'torch\.nn\.modules\.(activation\.\w+|linear\.Identity)'>", str(stated))
    if found is None or found.group(1) not in _ACTIVATIONS:
        allowed = ", ".join(key.split(".")[1] for key in _ACTIVATIONS)
        raise InputError(f"activation {printable(stated)} is not supported. Allowed: torch.nn {allowed}.")
    return _ACTIVATIONS[found.group(1)]


# ---------------------------------------------------------------- families


def _actor_critic(weights: Mapping[str, Array], activation: str, action_space: gym.Space[Any], squash: bool) -> Network:
    shared = _stack(weights, "mlp_extractor.shared_net", activation)  # before version 1.8
    body = shared + _stack(weights, "mlp_extractor.policy_net", activation)
    last = _dense(weights, "action_net")
    critic = shared + _stack(weights, "mlp_extractor.value_net", activation) + [_dense(weights, "value_net")]
    kinds: dict[type, HeadKind] = {
        gym.spaces.Discrete: "categorical",
        gym.spaces.MultiDiscrete: "multicategorical",
        gym.spaces.MultiBinary: "bernoulli",
        gym.spaces.Box: "gaussian",
    }
    kind = next((k for t, k in kinds.items() if isinstance(action_space, t)), None)
    if kind is None:
        raise InputError(f"action space {action_space} is not supported. {SUPPORTED}")
    log_std = weights.get("log_std")
    if (log_std is not None) != (kind == "gaussian"):
        raise InputError(
            f"the weights {'have' if log_std is not None else 'lack'} log_std, so the teacher was not trained on {action_space}. Give its own environment with --env."
        )
    if log_std is None:
        return Network(kind, (*body, last), tuple(critic))
    if log_std.ndim == 2:
        note = "its state-dependent exploration (gSDE) is not represented: the teacher plays greedily and has no spread"
        return Network("tanh" if squash else "deterministic", (*body, last), tuple(critic), (note,))
    if log_std.shape != last.bias.shape:
        raise InputError(f"log_std of shape {log_std.shape} for {last.bias.size} actions. Save the teacher again.")
    return Network("gaussian", (*body, _with_constant(last, log_std)), tuple(critic))


def _q_network(weights: Mapping[str, Array], activation: str, action_space: gym.Space[Any], squash: bool) -> Network:
    return Network("q", tuple(_open_ended(_stack(weights, "q_net.q_net", activation))))


def _soft(weights: Mapping[str, Array], activation: str, action_space: gym.Space[Any], squash: bool) -> Network:
    mean, log_std = _dense(weights, "actor.mu"), _dense(weights, "actor.log_std")
    both = Dense(
        np.concatenate([mean.weight, log_std.weight], axis=1), np.concatenate([mean.bias, log_std.bias]), "identity"
    )
    return Network("squashed", (*_stack(weights, "actor.latent_pi", activation), both))


def _deterministic(
    weights: Mapping[str, Array], activation: str, action_space: gym.Space[Any], squash: bool
) -> Network:
    return Network("tanh", tuple(_open_ended(_stack(weights, "actor.mu", activation))))


_CRITICS = rf"critic(_target)?\.qf\d+\.{_PART}"
FAMILIES: dict[str, Family] = {
    "PPO or A2C": Family(
        "action_net.weight",
        rf"log_std|(action_net|value_net)\.{_LINEAR}|mlp_extractor\.(shared|policy|value)_net\.{_PART}",
        "tanh",
        _actor_critic,
    ),
    "DQN": Family("q_net.q_net.0.weight", rf"q_net(_target)?\.q_net\.{_PART}", "relu", _q_network),
    "SAC": Family(
        "actor.log_std.weight",
        rf"actor\.latent_pi\.{_PART}|actor\.(mu|log_std)\.{_LINEAR}|{_CRITICS}|critic(_target)?\.quantile_critics\..*|log_ent_coef",
        "relu",
        _soft,
    ),
    "TD3": Family("actor.mu.0.weight", rf"actor(_target)?\.mu\.{_PART}|{_CRITICS}", "relu", _deterministic),
}


# ---------------------------------------------------------------- layers


def _stack(weights: Mapping[str, Array], prefix: str, activation: str) -> list[Dense]:
    """Linear layers 0, 2, 4 ... of a torch Sequential, each followed by the activation."""
    inside = [key[len(prefix) + 1 :] for key in weights if key.startswith(f"{prefix}.")]
    indices = sorted({int(key.split(".")[0]) for key in inside})
    if indices != list(range(0, 2 * len(indices), 2)):
        raise InputError(
            f"{prefix} has layers at {indices} where 0, 2, 4 ... are expected: it is no plain MLP. {SUPPORTED}"
        )
    return [_dense(weights, f"{prefix}.{i}", activation) for i in indices]


def _dense(weights: Mapping[str, Array], name: str, activation: str = "identity") -> Dense:
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    if weight.ndim != 2 or bias.shape != weight.shape[:1] or weight.dtype.kind != "f" or bias.dtype.kind != "f":
        raise InputError(
            f"{name} has a weight of {weight.shape} {weight.dtype} and a bias of {bias.shape}: it is no linear layer. {SUPPORTED}"
        )
    return Dense(np.ascontiguousarray(weight.T, np.float32), np.ascontiguousarray(bias, np.float32), activation)


def _open_ended(layers: list[Dense]) -> list[Dense]:
    return [*layers[:-1], Dense(layers[-1].weight, layers[-1].bias, "identity")]


def _with_constant(last: Dense, constant: Array) -> Dense:
    """The layer with outputs appended that do not depend on its input."""
    weight = np.concatenate([last.weight, np.zeros_like(last.weight)], axis=1)
    return Dense(weight, np.concatenate([last.bias, constant.astype(np.float32)]), "identity")


def _hint(stray: list[str]) -> str:
    if any(".cnn." in key or "features_extractor" in key for key in stray):
        return " (a feature extractor with weights of its own)"
    if "actor.log_std" in stray:
        return " (state-dependent exploration, gSDE)"
    if any("lstm" in key for key in stray):
        return " (a recurrent policy)"
    return ""
