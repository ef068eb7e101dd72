"""rsl_rl's `model_*.pt`: actor, critic, observation normaliser, recurrent memory.

    version    file                                  actor                      spread             normaliser
    5          actor_state_dict, critic_state_dict   mlp.N, rnn.rnn             distribution.      obs_normalizer
               (student_state_dict of Distillation)                             (log_)std_param
    1 to 4     model_state_dict                      actor.N (or student.N),    std, log_std       actor_obs_normalizer,
                                                     memory_a.rnn (memory_s)                       obs_norm_state_dict

The normaliser is (x - mean) / (std + eps) with eps .01, which is not in the file and is assumed; so is the activation,
ELU, its default. Files of one tensor table alone (`actor.N` beside `std`) are read as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from limbeck.contracts import Array, Dense, Gru, HeadKind, Layer, Lstm, Normaliser, Spec, View
from limbeck.errors import InputError, printable
from limbeck.teachers import fitting
from limbeck.teachers.files import Given
from limbeck.teachers.layouts import Drawn, activation, state_dict
from limbeck.teachers.tensors import Tensors, floats, with_constant

EPSILON = 0.01
SMALLEST_STD = 1e-6
ACTIVATION = "elu"
_SPREADS = ("std", "log_std", "distribution.std_param", "distribution.log_std_param")


@dataclass(frozen=True)
class _Half:
    """An actor or a critic: where its tensors stand."""

    tensors: Tensors
    mlp: str
    memory: str
    normaliser: str


def recognises(value: Any) -> bool:
    return _halves(value, "") is not None


def draw(value: Any, spec: Spec | None, given: Given, name: str) -> Drawn:
    halves = _halves(value, name)
    assert halves is not None
    actor, critic = halves
    norm = _normaliser(actor)
    word, note = activation(given, ACTIVATION, "rsl_rl")
    body = _body(actor, word)
    kind, layers, spread = _head(actor, body, spec, given)
    if left := [k for k in _unused(actor) if not k.startswith(("teacher", "memory_t", "critic", "memory_c"))]:
        raise InputError(
            f"{printable(name)}: {printable(left[0])} has no place in rsl_rl's MLP and RNN models. State the network with --architecture."
        )
    sight = fitting.vector(spec, body[0].inputs, given.view) if spec is not None else fitting.Sight(View())
    values, about = _values(critic, body[0].inputs, norm, word)
    notes = [note, *spread, *about, *sight.notes]
    if norm is not None:
        notes.append(f"its normaliser is (x - mean) / (std + {EPSILON}), rsl_rl's default")
    step = value.get("iter") if isinstance(value, dict) else None
    facts = {"iteration": step} if isinstance(step, int) else {}
    return Drawn("rsl_rl", kind, layers, values, sight.view, norm, tuple(notes), facts)


# ---------------------------------------------------------------- where things stand


def _halves(value: Any, name: str) -> tuple[_Half, _Half | None] | None:
    """(the policy, its critic) of any version's file, None for other files."""
    if not isinstance(value, dict):
        return None
    for actor, critic in (("actor_state_dict", "critic_state_dict"), ("student_state_dict", "")):
        weights = state_dict(value.get(actor))
        if weights is not None and "mlp.0.weight" in weights:
            values = state_dict(value.get(critic))
            return _newer(weights, name), _newer(values, name) if values is not None else None
    weights = state_dict(value.get("model_state_dict")) or state_dict(value)
    if weights is None:
        return None
    for who, memory in (("student", "memory_s"), ("actor", "memory_a")):
        if f"{who}.0.weight" in weights and ("model_state_dict" in value or any(s in weights for s in _SPREADS)):
            return _older(weights, value, name, who, memory)
    return None


def _newer(weights: Mapping[str, Array], name: str) -> _Half:
    return _Half(Tensors(weights, name), "mlp", "rnn.rnn", "obs_normalizer")


def _older(
    weights: dict[str, Array], value: Mapping[str, Any], name: str, who: str, memory: str
) -> tuple[_Half, _Half | None]:
    beside: dict[str, Array] = {}  # normalisers that the runner kept outside the model
    for ours, theirs in (
        (who, ("obs_norm_state_dict",)),
        ("critic", ("critic_obs_norm_state_dict", "privileged_obs_norm_state_dict")),
    ):
        found = next((s for key in theirs if (s := state_dict(value.get(key))) is not None), {})
        beside |= {f"{ours}_obs_normalizer.{key}": array for key, array in found.items()}
    tensors = Tensors({**weights, **beside}, name)
    critic = _Half(tensors, "critic", "memory_c.rnn", "critic_obs_normalizer") if "critic.0.weight" in weights else None
    return _Half(tensors, who, f"{memory}.rnn", f"{who}_obs_normalizer"), critic


def _unused(half: _Half) -> list[str]:
    return half.tensors.leftover()


# ---------------------------------------------------------------- parts


def _body(half: _Half, word: str) -> tuple[Layer, ...]:
    layers = half.tensors.mlp(half.mlp, word)
    if f"{half.memory}.weight_ih_l0" in half.tensors:
        return (*half.tensors.recurrent(half.memory), *layers)
    return layers


def _normaliser(half: _Half) -> Normaliser | None:
    tensors, prefix = half.tensors, half.normaliser
    if f"{prefix}._mean" not in tensors:
        return None
    mean, var, std = (tensors.take(f"{prefix}.{k}").reshape(-1) for k in ("_mean", "_var", "_std"))
    tensors.used.add(f"{prefix}.count")
    if not (mean.shape == var.shape == std.shape) or (std < 0).any():
        raise InputError(
            f"{printable(tensors.name)}: its normaliser's mean and std do not fit each other. Save the teacher again."
        )
    return Normaliser(floats(mean), floats(std + EPSILON))


def _head(
    half: _Half, body: tuple[Layer, ...], spec: Spec | None, given: Given
) -> tuple[HeadKind, tuple[Layer, ...], tuple[str, ...]]:
    """(kind, layers, notes). The spread is a tensor of its own, or missing (a student), or the second half of the output."""
    last = body[-1]
    assert isinstance(last, Dense)
    for key in _SPREADS:
        if key not in half.tensors:
            continue
        if given.kind not in (None, "gaussian", "deterministic"):
            raise InputError(
                f"--kind {printable(given.kind)} does not fit rsl_rl's Gaussian policy. Allowed: gaussian, deterministic."
            )
        numbers = half.tensors.take(key).reshape(-1)
        log_std = numbers if "log" in key else np.log(np.maximum(numbers, SMALLEST_STD))
        if given.kind == "deterministic":
            return "deterministic", body, ()
        return "gaussian", (*body[:-1], with_constant(last, log_std)), ()
    count = fitting.actions(spec.action_space) if spec is not None else None
    if count is not None and last.outputs == 2 * count:
        if given.kind == "gaussian":
            return (
                "gaussian",
                body,
                ("its second outputs are read as log standard deviations, because --kind gaussian says so",),
            )
        if given.kind == "deterministic":
            means = Dense(floats(last.weight[:, :count]), floats(last.bias[:count]), last.activation)
            return (
                "deterministic",
                (*body[:-1], means),
                ("its second outputs are left out, because --kind deterministic says so",),
            )
        raise InputError(
            f"{printable(half.tensors.name)} gives {last.outputs} numbers for {count} actions and does not say what the second half is. "
            "Allowed: --kind gaussian (log standard deviations), --kind deterministic (only means are used); a Beta policy is not read."
        )
    return "deterministic", body, ("it states no standard deviation, so it acts by its means",)


def _values(
    critic: _Half | None, inputs: int, norm: Normaliser | None, word: str
) -> tuple[tuple[Layer, ...], tuple[str, ...]]:
    """The critic on what the actor sees, its own normaliser folded in."""
    if critic is None:
        return (), ()
    layers, own = _body(critic, word), _normaliser(critic)
    if layers[-1].outputs != 1:
        return (), (f"its critic gives {layers[-1].outputs} values and is left out",)
    if layers[0].inputs != inputs:
        return (), (f"its critic sees {layers[0].inputs} numbers, the actor {inputs}: the critic is left out",)
    return (_renormalised(layers[0], norm, own), *layers[1:]), ()


def _renormalised(layer: Layer, given: Normaliser | None, wanted: Normaliser | None) -> Layer:
    """The layer that does on (x - mean) / scale of `given` what it did on those of `wanted`."""
    size = layer.inputs
    mean_g, scale_g = (given.mean, given.scale) if given is not None else (np.zeros(size), np.ones(size))
    mean_w, scale_w = (wanted.mean, wanted.scale) if wanted is not None else (np.zeros(size), np.ones(size))
    if np.array_equal(mean_g, mean_w) and np.array_equal(scale_g, scale_w):
        return layer
    factor, shift = scale_g.astype(np.float64) / scale_w, (mean_g.astype(np.float64) - mean_w) / scale_w
    weight = layer.weight if isinstance(layer, Dense) else layer.weight_x if isinstance(layer, (Gru, Lstm)) else None
    assert weight is not None
    turned, offset = floats(factor[:, None] * weight), shift @ weight.astype(np.float64)
    if isinstance(layer, Dense):
        return replace(layer, weight=turned, bias=floats(layer.bias + offset))
    if isinstance(layer, Gru):
        return replace(layer, weight_x=turned, bias_x=floats(layer.bias_x + offset))
    assert isinstance(layer, Lstm)
    return replace(layer, weight_x=turned, bias=floats(layer.bias + offset))
