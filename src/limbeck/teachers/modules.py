"""Any torch.nn.Module and any Python callable as a teacher.

What they are given, always with leading axis B:
    a callable    the observation as the task gives it: [B, *shape], or a dict of such arrays
    a module      float32 tensors: Box [B, *shape]; Discrete and MultiDiscrete one-hot [B, n]; a dict for Dict spaces

What they may return, by action space; integers are actions, floats are rows of numbers (n actions, m choices):
    Discrete(n)     int [B]           actions          float [B, n]       logits; kind="q": action values;
                                                                          kind="probabilities": probabilities
    MultiDiscrete   int [B, m]        actions          float [B, sum]     logits, choice after choice
    MultiBinary(n)  int [B, n]        actions          float [B, n]       logits
    Box(n)          float [B, *shape] actions; kind="tanh": numbers before tanh, then scaled to the bounds
                    float [B, 2n]     n means and n log standard deviations; kind="squashed": before tanh
                    (mean, std)       two arrays [B, *shape]; kind="squashed": of the numbers before tanh

They must be stateless: the same rows give the same answer, alone or among others. That is checked on a sample.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, get_args

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from limbeck import distributions, seeding, spaces, tasks
from limbeck.contracts import (
    Array,
    Floats,
    Head,
    HeadKind,
    Observation,
    PolicyOutput,
    Spec,
    State,
    Teacher,
    TeacherInfo,
    head_kind,
)
from limbeck.errors import InputError, LimbeckError, printable, unknown

if TYPE_CHECKING:
    import torch

Form = Literal["rows", "actions", "probabilities", "mean and std"]
Function = Callable[[Observation], Any]
KINDS = (*get_args(HeadKind), "probabilities")
SURE = 20.0  # nats between the action of a callable that returns actions and every other one
_SAMPLE = 4  # rows of the trial batch


class FunctionPolicy:
    """A stateless callable that plays."""

    def __init__(self, function: Function, spec: Spec, head: Head, form: Form, name: str) -> None:
        self._function, self._spec, self._head, self._form, self._name = function, spec, head, form, name

    @property
    def function(self) -> Function:
        """What is called."""
        return self._function

    @property
    def spec(self) -> Spec:
        return self._spec

    @property
    def head(self) -> Head:
        return self._head

    def initial_state(self, batch: int) -> State:
        return {}

    def __call__(self, obs: Observation, state: State, first: NDArray[np.bool_]) -> PolicyOutput:
        parts = arrays(_called(self._function, obs, len(first), self._name), self._name)
        params = FORMS[self._form](parts, self._head)
        if params.shape != (len(first), self._head.width):
            raise InputError(
                f"{self._name} returned {params.shape} for {len(first)} observations, needed ({len(first)}, {self._head.width}). Mend the teacher."
            )
        if not np.isfinite(params).all():
            raise InputError(f"{self._name} returned NaN or infinite numbers. Mend the teacher.")
        return PolicyOutput(params, {})


# ---------------------------------------------------------------- loading


def from_callable(function: Function, spec: Spec, kind: str | None = None, name: str = "") -> Teacher:
    """A teacher from `obs [B, ...] -> actions | logits | action values | (mean, std)`; the rules stand at the top."""
    shown = printable(name or getattr(function, "__name__", type(function).__name__))
    info = TeacherInfo(shown, "callable", "callable", "")
    return from_function(function, spec, kind, info)


def from_module(module: torch.nn.Module, spec: Spec, kind: str | None = None) -> Teacher:
    """A teacher from a torch module. A copy in evaluation mode plays; the module itself stays as it is."""
    import torch

    frozen = copy.deepcopy(module).eval().requires_grad_(False)
    device = next((p.device for p in frozen.parameters()), torch.device("cpu"))

    name = type(module).__name__
    weights = {key: value.detach().cpu() for key, value in module.state_dict().items()}
    for key, value in weights.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InputError(
                f"{name}: {printable(key)} holds NaN or infinite numbers. Pass a module from a sound checkpoint."
            )
    count = sum(value.numel() for value in weights.values())
    info = TeacherInfo(name, "torch", name, _digest(weights), {"parameters": count})
    return from_function(Evaluated(frozen, spec.observation_space, device), spec, kind, info)


class Evaluated:
    """A torch module as a function of the task's observation."""

    def __init__(self, module: torch.nn.Module, space: gym.Space[Any], device: torch.device) -> None:
        self.module, self._space, self._device = module, space, device

    def __call__(self, obs: Observation) -> Any:
        import torch

        with torch.inference_mode():
            return self.module(_tensors(obs, self._space, self._device))


def is_module(source: object) -> bool:
    """Whether `source` is a torch module; torch is imported only if it was already."""
    import sys

    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.nn.Module)


def imported(reference: str) -> Any:
    """The object that `package.module:attribute` names. The user asked for this module, so it is imported."""
    module_name, _, attribute = reference.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"teacher {printable(reference)!r} cannot be imported: {printable(error)}. Allowed: package.module:attribute that Python finds from here."
        ) from error
    return found


def _digest(weights: dict[str, Any]) -> str:
    import torch

    digest = hashlib.sha256()
    for key, value in sorted(weights.items()):
        digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()


def _tensors(obs: Observation, space: gym.Space[Any], device: torch.device) -> Any:
    import torch

    if isinstance(obs, dict) and isinstance(space, gym.spaces.Dict):
        return {key: _tensors(obs[key], part, device) for key, part in space.spaces.items()}
    values = np.asarray(obs)
    if not isinstance(space, (gym.spaces.Box, gym.spaces.MultiBinary)):
        values = spaces.flatten(values, space)
    return torch.tensor(np.asarray(values, np.float32), device=device)


# ---------------------------------------------------------------- reading what comes back


def from_function(function: Function, spec: Spec, kind: str | None, info: TeacherInfo) -> Teacher:
    """The same with a record of what it is; `info.path` names it in errors."""
    if kind is not None and kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    spaces.flat_size(spec.observation_space)  # refuses spaces that no student could see
    obs = trial_batch(spec)
    raw = _called(function, obs, _SAMPLE, info.path)
    head, form = interpret(arrays(raw, info.path), spec.action_space, kind, info.path)
    policy = FunctionPolicy(function, spec, head, form, info.path)
    _check_stateless(policy, obs)
    return Teacher(policy, info)


def trial_batch(spec: Spec) -> Observation:
    """[4, ...] observations that depend on the space alone, to see what an answer looks like."""
    rng = seeding.generator(0, "golden")
    batch = tasks.empty_observation(spec, _SAMPLE)
    space = spec.observation_space
    if isinstance(batch, dict) and isinstance(space, gym.spaces.Dict):
        return {key: _trial(part, batch[key], rng) for key, part in space.spaces.items()}
    return _trial(space, np.asarray(batch), rng)


def _trial(space: gym.Space[Any], empty: Array, rng: np.random.Generator) -> Array:
    drawn = rng.standard_normal(empty.shape)
    match space:
        case gym.spaces.Box():
            return np.clip(drawn, space.low, space.high).astype(space.dtype)
        case gym.spaces.Discrete():
            return rng.integers(space.n, size=empty.shape).astype(empty.dtype) + space.start
        case gym.spaces.MultiDiscrete():
            return rng.integers(space.nvec, size=empty.shape).astype(empty.dtype) + space.start
    return (drawn > 0).astype(empty.dtype)


def _called(function: Function, obs: Observation, batch: int, name: str) -> Any:
    try:
        return function(obs)
    except LimbeckError:  # it says what is wrong itself
        raise
    except Exception as error:
        raise InputError(
            f"{name} raised {type(error).__name__} on a batch of {batch} observations: {printable(error)}. A teacher takes observations with a leading batch axis."
        ) from error


def arrays(raw: Any, name: str) -> list[Array]:
    """The parts of an answer as float32 or integer arrays with leading axis B."""
    parts = list(raw) if isinstance(raw, tuple) else [raw]
    found = [np.asarray(p.detach().cpu().numpy() if hasattr(p, "detach") else p) for p in parts]
    if any(a.dtype.kind not in "fiub" or a.ndim == 0 for a in found) or len(found) > 2:
        given = ", ".join(f"{a.dtype}{list(a.shape)}" for a in found[:4])
        raise InputError(
            f"{name} returned {printable(given)}. Allowed: one array of actions or rows with leading axis B, or (mean, std) on a Box."
        )
    return [a.astype(np.float32) if a.dtype.kind == "f" else a for a in found]


def interpret(parts: list[Array], space: gym.Space[Any], kind: str | None, name: str) -> tuple[Head, Form]:
    """Which head and which form fit the trial answer."""
    integers, width = parts[0].dtype.kind != "f", int(np.prod(parts[0].shape[1:]))
    if isinstance(space, gym.spaces.Box):
        n = int(np.prod(space.shape))
        both = len(parts) == 2 and all(int(np.prod(p.shape[1:])) == n for p in parts)
        if both and kind in (None, "gaussian", "squashed"):
            return spaces.head_for(space, "squashed" if kind == "squashed" else "gaussian"), "mean and std"
        two = kind in ("gaussian", "squashed") or (kind is None and width == 2 * n)
        head = spaces.head_for(space, _head_kind(kind, "gaussian" if two else "deterministic", name))
        if len(parts) == 1 and not integers and width == head.width:
            return head, "rows"
    else:
        head = spaces.head_for(space, _head_kind(None if kind == "probabilities" else kind, None, name))
        choices = (
            1
            if head.kind in ("categorical", "q")
            else len(head.sizes)
            if head.kind == "multicategorical"
            else head.width
        )
        if len(parts) == 1 and integers and width == choices and kind not in ("probabilities", "q"):
            return head, "actions"
        if len(parts) == 1 and not integers and width == head.width:
            return head, "probabilities" if kind == "probabilities" else "rows"
    given = ", ".join(f"{p.dtype}{list(p.shape)}" for p in parts)
    raise InputError(
        f"{name} returned {given} for {_SAMPLE} observations and actions {space}{f' as {kind}' if kind else ''}. "
        f"Needed: {_needed(space)}."
    )


def _head_kind(kind: str | None, default: HeadKind | None, name: str) -> HeadKind | None:
    if kind == "probabilities":
        raise InputError(
            f"{name}: probabilities describe no continuous action. Allowed: {', '.join(get_args(HeadKind))}."
        )
    return default if kind is None else head_kind(kind)


def _needed(space: gym.Space[Any]) -> str:
    match space:
        case gym.spaces.Discrete():
            return f"int [B] actions, or float [B, {space.n}] logits (kind='q': action values)"
        case gym.spaces.MultiDiscrete():
            return f"int [B, {space.nvec.size}] actions, or float [B, {int(space.nvec.sum())}] logits"
        case gym.spaces.MultiBinary():
            return f"int or float [B, {int(np.prod(space.shape))}]: actions or logits"
    n = int(np.prod(space.shape or ()))
    return f"float [B, {n}] actions, float [B, {2 * n}] means and log standard deviations, or (mean, std)"


def _rows(parts: list[Array], head: Head) -> Floats:
    return parts[0].reshape(len(parts[0]), -1).astype(np.float32)


def _log_probabilities(parts: list[Array], head: Head) -> Floats:
    rows = _rows(parts, head)
    sums = np.stack([group.sum(axis=1) for group in distributions.groups(head, rows)])
    if head.kind not in ("categorical", "multicategorical") or (rows < 0).any() or not np.allclose(sums, 1, atol=1e-3):
        raise InputError(
            f"probabilities must be non-negative and add to 1, given rows that add to {sums.min():.3g} .. {sums.max():.3g}. Drop kind='probabilities' if they are logits."
        )
    return np.log(np.maximum(rows, np.float32(1e-30)))


def _mean_and_std(parts: list[Array], head: Head) -> Floats:
    mean, std = (p.reshape(len(p), -1).astype(np.float32) for p in parts)
    if not (std > 0).all():
        raise InputError(
            f"standard deviations must be positive, given {std.min():.3g}. Return (mean, std), not log std."
        )
    return np.concatenate([mean, np.log(std)], axis=1)


def _sure(parts: list[Array], head: Head) -> Floats:
    """Actions as rows that are all but certain of them."""
    chosen = parts[0].reshape(len(parts[0]), -1).astype(np.int64)
    if head.kind == "bernoulli":
        return np.where(chosen > 0, SURE, -SURE).astype(np.float32)
    chosen = chosen - np.asarray(head.start or 0)
    if (chosen < 0).any() or (chosen >= np.asarray(head.sizes)).any():
        raise InputError(
            f"an action is outside the action space: given {parts[0].min()} .. {parts[0].max()}. Mend the teacher."
        )
    columns = [np.eye(size, dtype=np.float32)[chosen[:, i]] for i, size in enumerate(head.sizes)]
    return np.float32(SURE) * (np.concatenate(columns, axis=1) - 1)


FORMS: dict[Form, Callable[[list[Array], Head], Floats]] = {
    "rows": _rows,
    "actions": _sure,
    "probabilities": _log_probabilities,
    "mean and std": _mean_and_std,
}


def _check_stateless(policy: FunctionPolicy, obs: Observation) -> None:
    fresh = np.ones(_SAMPLE, bool)
    once, again = policy(obs, {}, fresh).params, policy(obs, {}, fresh).params
    alone = policy(tasks.take_rows(obs, slice(0, 1)), {}, fresh[:1]).params
    if not np.allclose(once, again, rtol=1e-4, atol=1e-5) or not np.allclose(once[:1], alone, rtol=1e-3, atol=1e-4):
        raise InputError(
            f"{policy._name} gave two answers to the same observation: it draws at random, remembers, or mixes the rows of a batch. Return the distribution, not a draw."
        )
