"""What a teacher shows of its layers: their names, their shapes, and the teacher asked to state them beside its answer.

    teacher                                       names
    blueprints: saved policies, weights, layouts  layers.0, layers.1 ...; layers.0.linear before the activation
    Stable-Baselines3 among them                  also those of its modules, such as mlp_extractor.policy_net.0
    torch modules given as objects                those of `named_modules()`, for every one that gives one tensor per row

Programs (TorchScript, .pt2), ONNX and Keras sessions, callables, recordings and ensembles show nothing inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from limbeck.contracts import Array, Observation, Policy, PolicyOutput, State, Teacher
from limbeck.errors import InputError, printable, unknown
from limbeck.runtimes.around import Around
from limbeck.runtimes.numpy import NumpyPolicy, layer_shapes
from limbeck.teachers.layouts import ExpectedValues
from limbeck.teachers.masking import MaskedPolicy
from limbeck.teachers.modules import Evaluated, FunctionPolicy, trial_batch
from limbeck.teachers.sb3 import naming

if TYPE_CHECKING:
    import torch

Shapes = Mapping[str, tuple[int, ...]]


def shapes(teacher: Teacher) -> Shapes:
    """Layer -> shape of one row; empty where nothing inside can be seen. A torch module is asked once to find out."""
    policy = _bare(teacher.policy)
    if isinstance(policy, (NumpyPolicy, ExpectedValues)):
        drawn = policy.blueprint if isinstance(policy, NumpyPolicy) else policy.network
        found = layer_shapes(drawn.layers)
        return {**found, **{alias: found[layer] for alias, layer in _aliases(teacher).items()}}
    return _module_shapes(policy) if _is_module(policy) else {}


def capturing(teacher: Teacher, layers: Sequence[str]) -> Policy:
    """The teacher's policy, which also states these layers, float32 [B, ...] each. Raises InputError for others."""
    names = tuple(dict.fromkeys(layers))
    if not names:
        return teacher.policy
    refuse(teacher, names)
    wanted = {name: _aliases(teacher).get(name, name) for name in names}
    shown = _shown(teacher.policy, tuple(dict.fromkeys(wanted.values())))
    return Renamed(shown, wanted) if any(name != layer for name, layer in wanted.items()) else shown


def refuse(teacher: Teacher, layers: Sequence[str]) -> None:
    """Raise InputError for layers that this teacher does not have or does not show."""
    offered = shapes(teacher)
    if not offered:
        raise InputError(
            f"the layers {printable(', '.join(layers))} were asked for, but {_what(teacher)} shows nothing inside. Allowed: a torch.nn.Module "
            "given in Python, or a file whose network is read: Stable-Baselines3, safetensors, weights with --architecture."
        )
    for layer in layers:
        if layer not in offered:
            raise unknown("teacher layer", layer, offered)


def _what(teacher: Teacher) -> str:
    return f"this teacher ({printable(teacher.info.format)}, {printable(teacher.info.algorithm)})"


def _aliases(teacher: Teacher) -> Mapping[str, str]:
    return naming.aliases(teacher.info, teacher.blueprint) if teacher.blueprint is not None else {}


def _bare(policy: Policy) -> Policy:
    return policy.inner if isinstance(policy, MaskedPolicy) else policy


def _is_module(policy: Policy) -> bool:
    return isinstance(policy, FunctionPolicy) and isinstance(policy.function, Evaluated)


def _shown(policy: Policy, layers: Sequence[str]) -> Policy:
    if isinstance(policy, MaskedPolicy):
        return MaskedPolicy(_shown(policy.inner, layers))
    if isinstance(policy, NumpyPolicy):
        return NumpyPolicy(policy.blueprint, layers)
    return policy.capturing(layers) if isinstance(policy, ExpectedValues) else HookedPolicy(policy, layers)


class Renamed(Around):
    """Another policy whose layers are shown under the names they were asked by."""

    def __init__(self, inner: Policy, names: Mapping[str, str]) -> None:
        super().__init__(inner)
        self._names = names  # asked name -> layer

    def __call__(self, obs: Observation, state: State, first: NDArray[np.bool_]) -> PolicyOutput:
        output = self.inner(obs, state, first)
        return replace(output, features={name: output.features[layer] for name, layer in self._names.items()})


# ---------------------------------------------------------------- torch modules


class HookedPolicy(Around):
    """A torch module that plays and shows what some of its submodules gave."""

    def __init__(self, inner: Policy, layers: Sequence[str]) -> None:
        super().__init__(inner)
        self._layers, self._module = tuple(layers), _module_of(inner)

    def __call__(self, obs: Observation, state: State, first: NDArray[np.bool_]) -> PolicyOutput:
        with _hooked(self._module, self._layers) as seen:
            output = self.inner(obs, state, first)
        return replace(output, features={layer: _rows(seen[layer][0]) for layer in self._layers})


def _module_of(policy: Policy) -> torch.nn.Module:
    if not isinstance(policy, FunctionPolicy) or not isinstance(policy.function, Evaluated):
        raise TypeError("no torch module plays here")
    return policy.function.module


@contextmanager
def _hooked(module: torch.nn.Module, layers: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
    """What each of the submodules gives while the context lasts, call by call; an activation that works in place
    would change it later, so it is copied."""
    seen: dict[str, list[Any]] = {layer: [] for layer in layers}

    def hook(layer: str) -> Any:
        return lambda _module, _inputs, given: seen[layer].append(given.clone() if hasattr(given, "clone") else None)

    handles = [module.get_submodule(layer).register_forward_hook(hook(layer)) for layer in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _module_shapes(policy: Policy) -> Shapes:
    """Of the submodules that are called once and give one tensor with a row per observation."""
    module, batch = _module_of(policy), trial_batch(policy.spec)
    names = [name for name, _ in module.named_modules() if name]
    count = len(next(iter(batch.values())) if isinstance(batch, dict) else batch)
    with _hooked(module, names) as seen:
        policy(batch, {}, np.ones(count, bool))
    given = {name: calls[0] for name, calls in seen.items() if len(calls) == 1 and calls[0] is not None}
    return {
        name: tuple(tensor.shape[1:])
        for name, tensor in given.items()
        if tensor.is_floating_point() and tensor.ndim > 1 and len(tensor) == count
    }


def _rows(tensor: torch.Tensor) -> Array:
    rows: Array = tensor.detach().cpu().float().numpy()
    return rows
