"""CleanRL's scripts: the network is found by the names of its tensors, its sizes by their shapes.

    script                     tensors                                    head              activation
    ppo, ppo_multidiscrete     actor.0 2 4, critic.0 2 4                  logits            tanh
    ppo_atari(_lstm)           network.0 2 4 7, (lstm), actor, critic     logits            relu
    ppo_ and rpo_continuous    actor_mean.0 2 4, actor_logstd, critic     gaussian          tanh
    dqn, dqn_atari             network.0 2 4 (7 9)                        q                 relu
    c51, c51_atari             the same, atoms                            q, expected       relu
    sac_continuous             fc1, fc2, fc_mean, fc_logstd               squashed          relu
    td3_, ddpg_continuous      fc1, fc2, fc_mu                            tanh              relu

The scripts save the bare state dict, {"model_weights", "args"} (c51) or a tuple that begins with the actor (td3, ddpg).
Activations are no part of a file: those of the scripts are assumed, and a note says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium import spaces

from limbeck.contracts import Array, Dense, HeadKind, Layer, Parallel, Spec, View
from limbeck.errors import InputError, printable
from limbeck.teachers import fitting, stated
from limbeck.teachers.files import Given
from limbeck.teachers.layouts import Drawn, activation, state_dict
from limbeck.teachers.tensors import Tensors, floats, with_constant

LOG_STD = (-5.0, 2.0)  # sac_continuous_action squeezes its log standard deviations into these
_PATTERNS = {
    "ppo": r"(actor|critic)\.\d+\.(weight|bias)",
    "ppo_continuous_action": r"actor_logstd|(actor_mean|critic)\.\d+\.(weight|bias)",
    "ppo_atari": r"network\.\d+\.(weight|bias)|lstm\.(weight|bias)_[ih]h_l\d|(actor|critic)\.(weight|bias)",
    "c51": r"atoms|network\.\d+\.(weight|bias)",
    "dqn": r"network\.\d+\.(weight|bias)",
    "sac_continuous_action": r"action_(scale|bias)|(fc1|fc2|fc_mean|fc_logstd)\.(weight|bias)",
    "td3_continuous_action": r"action_(scale|bias)|(fc1|fc2|fc_mu)\.(weight|bias)",
}
_MARKERS = {
    "ppo": ("actor.0.weight", "critic.0.weight"),
    "ppo_continuous_action": ("actor_logstd", "actor_mean.0.weight"),
    "ppo_atari": ("network.0.weight", "actor.weight", "critic.weight"),
    "c51": ("atoms", "network.0.weight"),
    "dqn": ("network.0.weight",),
    "sac_continuous_action": ("fc1.weight", "fc_mean.weight", "fc_logstd.weight"),
    "td3_continuous_action": ("fc1.weight", "fc2.weight", "fc_mu.weight"),
}
_SCRIPT_STRIDES = {(8, 8): (4, 4), (4, 4): (2, 2), (3, 3): (1, 1)}  # of the Atari scripts, by kernel
_STATED = ("env_id", "seed", "total_timesteps", "learning_rate", "gamma", "n_atoms", "v_min", "v_max", "exp_name")


def recognises(value: Any) -> bool:
    return _script(_weights(value)) is not None


def draw(value: Any, spec: Spec | None, given: Given, name: str) -> Drawn:
    weights = _weights(value)
    script = _script(weights)
    assert script is not None
    assert weights is not None
    given_kind(given, name)
    tensors = Tensors(weights, name)
    word, note = activation(
        given, "tanh" if script in ("ppo", "ppo_continuous_action") else "relu", f"CleanRL's {script}"
    )
    drawn = _BUILD[script](tensors, spec, given, word)
    left = tensors.leftover()
    if left:
        raise InputError(
            f"{printable(name)}: {printable(left[0])} has no place in CleanRL's {script}. State the network with --architecture."
        )
    ddpg = script == "td3_continuous_action" and isinstance(value, (tuple, list)) and len(value) == 2  # one critic
    shown = "ddpg_continuous_action" if ddpg else script
    return replace(drawn, algorithm=f"CleanRL {shown}", notes=(note, *drawn.notes), facts=_facts(value))


def given_kind(given: Given, name: str) -> None:
    if given.kind is not None:
        raise InputError(
            f"--kind was given for {printable(name)}, but its layout says what its output is. Drop --kind, or add --architecture."
        )


def _weights(value: Any) -> dict[str, Array] | None:
    """The actor's state dict in what the scripts save."""
    if (
        isinstance(value, dict)
        and isinstance(value.get("model_weights"), dict)
        and set(value) <= {"model_weights", "args"}
    ):
        value = value["model_weights"]
    elif isinstance(value, (tuple, list)) and 2 <= len(value) <= 3:
        parts = [state_dict(part) for part in value]
        if None in parts or any("fc3.weight" not in (part or {}) for part in parts[1:]):
            return None
        value = parts[0]
    return state_dict(value)


def _script(weights: Mapping[str, Array] | None) -> str | None:
    if weights is None:
        return None
    for script, markers in _MARKERS.items():
        if all(m in weights for m in markers) and all(re.fullmatch(_PATTERNS[script], key) for key in weights):
            return script
    return None


def _facts(value: Any) -> dict[str, Any]:
    args = value.get("args") if isinstance(value, dict) else None
    args = args if isinstance(args, dict) else {}
    return {
        key: args[key]
        for key in _STATED
        if isinstance(args.get(key), (int, float)) or (isinstance(args.get(key), str) and len(args[key]) < 100)
    }


def _drawn(kind: HeadKind, layers: tuple[Layer, ...], sight: fitting.Sight | None, **more: Any) -> Drawn:
    notes = (sight.notes if sight else ()) + more.pop("notes", ())
    view = sight.view if sight is not None else View()
    return Drawn("", kind, layers, view=view, notes=notes, **more)


def _seen(layers: tuple[Layer, ...], spec: Spec | None, given: Given) -> fitting.Sight | None:
    return fitting.vector(spec, layers[0].inputs, given.view) if spec is not None else None


# ---------------------------------------------------------------- scripts


def _ppo(tensors: Tensors, spec: Spec | None, given: Given, word: str) -> Drawn:
    layers, critic = tensors.mlp("actor", word), tensors.mlp("critic", word)
    return _drawn(_logits(spec), layers, _seen(layers, spec, given), value_layers=critic)


def _continuous(tensors: Tensors, spec: Spec | None, given: Given, word: str) -> Drawn:
    *body, last = tensors.mlp("actor_mean", word)
    assert isinstance(last, Dense)
    layers = (*body, with_constant(last, tensors.take("actor_logstd").reshape(-1)))
    note = "CleanRL trains it on observations that NormalizeObservation scales and does not save; if this one was, give the statistics with --normaliser"
    return _drawn(
        "gaussian", layers, _seen(layers, spec, given), value_layers=tensors.mlp("critic", word), notes=(note,)
    )


def _ppo_atari(tensors: Tensors, spec: Spec | None, given: Given, word: str) -> Drawn:
    sight, body = _nature(tensors, spec, given, word)
    if "lstm.weight_ih_l0" in tensors:
        body = (*body, *tensors.recurrent("lstm", "lstm"))
    return _drawn(_logits(spec), (*body, tensors.dense("actor")), sight, value_layers=(*body, tensors.dense("critic")))


def _dqn(tensors: Tensors, spec: Spec | None, given: Given, word: str) -> Drawn:
    if tensors.has_weight("network.0", 4):
        sight, body = _nature(tensors, spec, given, word)
        return _drawn("q", (*body, tensors.dense("network.9")), sight)
    layers = tensors.mlp("network", word)
    return _drawn("q", layers, _seen(layers, spec, given))


def _c51(tensors: Tensors, spec: Spec | None, given: Given, word: str) -> Drawn:
    atoms = tensors.take("atoms", 1)
    note = "its expected returns are computed from its distributions: no plain network computes them, so it is not drawn as one"
    plain = _dqn(tensors, spec, given, word)
    return replace(plain, atoms=atoms, notes=(*plain.notes, note))


def _sac(tensors: Tensors, spec: Spec | None, given: Given, word: str) -> Drawn:
    body = (tensors.dense("fc1", word), tensors.dense("fc2", word))
    mean, raw = tensors.dense("fc_mean"), tensors.dense("fc_logstd", "tanh")
    _check_bounds(tensors, spec)
    low, high = LOG_STD
    spread = Dense(floats(np.eye(raw.outputs) * (high - low) / 2), floats(np.full(raw.outputs, (high + low) / 2)))
    width = body[-1].outputs
    layers = (*body, Parallel(((mean,), (raw, spread)), ((0, width), (0, width)), width))
    return _drawn("squashed", layers, _seen(layers, spec, given))


def _deterministic(tensors: Tensors, spec: Spec | None, given: Given, word: str) -> Drawn:
    layers = (tensors.dense("fc1", word), tensors.dense("fc2", word), tensors.dense("fc_mu"))
    _check_bounds(tensors, spec)
    return _drawn("tanh", layers, _seen(layers, spec, given))


_BUILD = {
    "ppo": _ppo, "ppo_continuous_action": _continuous, "ppo_atari": _ppo_atari, "c51": _c51, "dqn": _dqn,
    "sac_continuous_action": _sac, "td3_continuous_action": _deterministic,
}  # fmt: skip


# ---------------------------------------------------------------- parts


def _logits(spec: Spec | None) -> HeadKind:
    if spec is None:
        return "categorical"
    kind = fitting.discrete_kind(spec.action_space)
    if kind is None or kind == "bernoulli":
        raise stated.differ(
            [f"the teacher gives logits of discrete actions, the task takes {stated.shape_of(spec.action_space)}"], spec
        )
    return kind


def _nature(
    tensors: Tensors, spec: Spec | None, given: Given, word: str
) -> tuple[fitting.Sight | None, tuple[Layer, ...]]:
    """The Atari scripts' network: pictures / 255, convolutions of known kernels and strides, one dense layer."""
    convs = ("network.0", "network.2", "network.4")
    kernels = [tensors.take(f"{c}.weight", 4).shape for c in convs]
    odd = [k[2:] for k, script in zip(kernels, _SCRIPT_STRIDES, strict=True) if k[2:] != script]
    if odd:
        raise InputError(
            f"{printable(tensors.name)}: a convolution of {odd[0]} where CleanRL's Atari scripts have {list(_SCRIPT_STRIDES)}; its stride is not in the file. State the network with --architecture."
        )
    if spec is None:
        sight = fitting.Sight(View(), (84, 84), "chw", ("pictures of 84x84 are assumed, as in CleanRL",))
    else:
        sight = fitting.image(spec, kernels[0][1], given.view)
    layers: list[Layer] = []
    size, layout, divide = sight.size, sight.layout, 255.0
    for prefix, stride in zip(convs, _SCRIPT_STRIDES.values(), strict=True):
        conv = tensors.conv(prefix, size, stride, activation=word, layout=layout, divide=divide)
        layers.append(conv)
        size, layout, divide = conv.out_size, "hwc", 1.0
    return sight, (*layers, tensors.dense("network.7", word, grid=(*size, kernels[-1][0])))


def _check_bounds(tensors: Tensors, spec: Spec | None) -> None:
    """The file's action_scale and action_bias against the task's bounds."""
    if "action_scale" not in tensors:
        return
    scale, bias = (tensors.take(f"action_{part}").reshape(-1) for part in ("scale", "bias"))
    if scale.shape != bias.shape or (scale < 0).any():
        raise InputError(
            f"{printable(tensors.name)}: its action_scale and action_bias are no bounds of actions. Save the teacher again."
        )
    if spec is None:
        return
    space = spec.action_space
    if not isinstance(space, spaces.Box) or fitting.actions(space) != scale.size:
        raise stated.differ([f"actions: teacher {scale.size} numbers, task {stated.shape_of(space)}"], spec)
    theirs = spaces.Box(floats(bias - scale), floats(bias + scale))
    task = spaces.Box(space.low.reshape(-1), space.high.reshape(-1))
    stated.compare_spaces(Spec(theirs, theirs), Spec(theirs, task, spec.name))
