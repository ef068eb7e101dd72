"""Stable-Baselines3 zips: the weights and what `data` states in the open. Every pickled blob is dropped unread.

The policy is rebuilt from the weights; bounds come from the task's spaces, the activation from its printed name or the
algorithm's default. A zip that hides code loads, its code never runs, and `unread` names the entries that hold it.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from limbeck import blueprints, spaces
from limbeck.contracts import Array, Blueprint, Normaliser, Spec, View
from limbeck.errors import InputError, printable
from limbeck.teachers import inert, networks, normaliser, stated
from limbeck.teachers.archive import Archive

WEIGHTS, SETTINGS = "policy.pth", "data"
_VERSION, _SYSTEM = "_stable_baselines3_version", "system_info.txt"
_USUAL_MEMBERS = {
    "pytorch_variables.pth", "policy.optimizer.pth", "actor.optimizer.pth", "critic.optimizer.pth",
    "ent_coef_optimizer.pth",
}  # fmt: skip
_USUAL_KEYS = {  # what Stable-Baselines3 itself may write as a pickle inside `data`
    "policy_class", "policy_kwargs", "observation_space", "action_space", "action_noise", "learning_rate", "ent_coef",
    "_last_obs", "_last_episode_starts", "_last_original_obs", "_last_dones", "ep_info_buffer", "ep_success_buffer",
    "rollout_buffer_class", "rollout_buffer_kwargs", "replay_buffer_class", "replay_buffer_kwargs", "clip_range",
    "clip_range_vf", "lr_schedule", "train_freq", "exploration_schedule", "target_entropy", "target_kl", "seed",
    "start_time", "tensorboard_log", "batch_norm_stats", "batch_norm_stats_target", "actor_batch_norm_stats",
    "critic_batch_norm_stats", "actor_batch_norm_stats_target", "critic_batch_norm_stats_target",
}  # fmt: skip
_STATED = (
    "num_timesteps", "seed", "learning_rate", "gamma", "n_envs", "n_steps", "batch_size", "n_epochs", "gae_lambda",
    "ent_coef", "vf_coef", "tau", "buffer_size", "learning_starts", "gradient_steps", "use_sde",
)  # fmt: skip


@dataclass(frozen=True)
class Saved:
    """An opened zip: plain settings, weights, and the names of what was left unread."""

    name: str
    settings: Mapping[str, Any]
    weights: Mapping[str, Array]
    version: str
    unread: tuple[str, ...]
    blobs: Mapping[str, bytes]  # pickles that `data` hides, for `inspect` alone: never interpreted by `load`


def is_sb3(archive: Archive) -> bool:
    return SETTINGS in archive.members or WEIGHTS in archive.members


def read(archive: Archive) -> Saved:
    """Settings and weights. Raises InputError for damage, UnsafeError for weights that hold more than tensors."""
    values = _json(archive.read(SETTINGS), archive.name)
    value = inert.read_torch_zip(archive.read(WEIGHTS), f"{archive.name}: {WEIGHTS}")
    blobs = {key: _blob(entry) for key, entry in values.items() if _is_pickled(entry)}
    settings = {key: _open_part(entry) for key, entry in values.items()}
    version = archive.read(_VERSION)[:40].decode("ascii", "replace").strip() if _VERSION in archive.members else ""
    return Saved(
        archive.name,
        settings,
        inert.tensors(value, f"{archive.name}: {WEIGHTS}"),
        printable(version),
        _unread(archive, blobs),
        blobs,
    )


def _json(content: bytes, name: str) -> dict[str, Any]:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: its settings are no JSON ({printable(error)}). Save the teacher again.") from error
    if not isinstance(values, dict):
        raise InputError(f"{name}: its settings are a {type(values).__name__}, not a table. Save the teacher again.")
    return values


def _is_pickled(entry: Any) -> bool:
    return isinstance(entry, dict) and ":serialized:" in entry


def _open_part(entry: Any) -> Any:
    return {k: v for k, v in entry.items() if k != ":serialized:"} if isinstance(entry, dict) else entry


def _blob(entry: Mapping[str, Any]) -> bytes:
    try:
        return base64.b64decode(str(entry[":serialized:"]).encode("ascii", "replace"))
    except (binascii.Error, ValueError):
        return b""


def _unread(archive: Archive, blobs: Mapping[str, bytes]) -> tuple[str, ...]:
    odd = " (not written by Stable-Baselines3)"
    keys = [f"{SETTINGS}: {printable(key, 60)}{'' if key in _USUAL_KEYS else odd}" for key in blobs]
    known = {SETTINGS, WEIGHTS, _VERSION, _SYSTEM}
    members = [m for m in archive.members if m not in known]
    return tuple(keys + [f"{printable(m, 60)}{'' if m in _USUAL_MEMBERS else odd}" for m in members])


# ---------------------------------------------------------------- what it is


def algorithm(saved: Saved) -> str:
    """The algorithm's name, inferred: the file does not state it."""
    family, settings = networks.family_of(saved.weights, saved.name), saved.settings
    if family == "PPO or A2C":
        if "cg_max_steps" in settings:
            return "TRPO"
        return "PPO" if "clip_range" in settings else "A2C" if settings else family
    if family == "SAC" and any("quantile_critics" in key for key in saved.weights):
        return "TQC"
    if family == "TD3" and settings.get("policy_delay") == 1 and settings.get("target_noise_clip") == 0:
        return "DDPG"
    return family


def facts(saved: Saved) -> dict[str, Any]:
    """What the file says in the open that a reader of the report may want."""
    found = {key: saved.settings[key] for key in _STATED if isinstance(saved.settings.get(key), (int, float))}
    for key in ("observation_space", "action_space"):
        space = stated.space_of(saved.settings.get(key))
        if space is not None:
            found[key] = stated.described(space)
    kwargs = saved.settings.get("policy_kwargs")
    if isinstance(kwargs, Mapping) and "net_arch" in kwargs:
        found["net_arch"] = printable(kwargs["net_arch"])
    return {**found, "stable_baselines3": saved.version, "trained_normalised": trained_normalised(saved)}


def trained_normalised(saved: Saved) -> bool:
    """Whether training surely ran under VecNormalize: only then do on-policy algorithms keep an unnormalised observation."""
    return "gae_lambda" in saved.settings and saved.settings.get("_last_original_obs") is not None


def spec_of(saved: Saved) -> Spec:
    """Spaces from the file's own print-outs, for use without a task."""
    observation, action = (stated.space_of(saved.settings.get(f"{k}_space")) for k in ("observation", "action"))
    if observation is None or action is None:
        raise InputError(f"{saved.name} does not state its spaces in the open. Name the environment with --env.")
    return Spec(observation, action, Path(saved.name).stem)


def policy(
    saved: Saved, spec: Spec, statistics: tuple[bytes, str] | None
) -> tuple[Blueprint, tuple[str, ...], tuple[str, ...]]:
    """(blueprint, notes, further unread names). `statistics` are the bytes and name of a VecNormalize file."""
    _refuse_unsupported(saved, spec)
    notes = list(stated.compare(saved.settings, spec))
    kwargs = saved.settings.get("policy_kwargs")
    kwargs = kwargs if isinstance(kwargs, Mapping) else {}
    activation = networks.activation_of(kwargs)
    network = networks.build(
        saved.weights, activation, spec.action_space, kwargs.get("squash_output") is True, saved.name
    )
    notes += network.notes
    if activation is None and len(network.layers) > 1:
        first = network.layers[0]
        notes.append(
            f"the file names no activation: {getattr(first, 'activation', '')} is assumed, the default of {algorithm(saved)}"
        )
    norm, more, unread = _normaliser(saved, spec, statistics)
    keys = tuple(spec.observation_space.spaces) if isinstance(spec.observation_space, gym.spaces.Dict) else None
    head = spaces.head_for(spec.action_space, network.kind)
    drawn = Blueprint(spec, head, network.layers, View(keys=keys), norm, network.value_layers, Path(saved.name).stem)
    _check(drawn)
    return drawn, (*notes, *more), unread


def _normaliser(
    saved: Saved, spec: Spec, statistics: tuple[bytes, str] | None
) -> tuple[Normaliser | None, tuple[str, ...], tuple[str, ...]]:
    if statistics is None:
        missing = (
            "it was trained under VecNormalize, whose statistics are not in the zip: give the file with --normaliser"
        )
        return None, (missing,) if trained_normalised(saved) else (), ()
    norm, notes, unread = normaliser.read(*statistics, spec.observation_space)
    used = (f"observations are normalised by {printable(statistics[1])}",) if norm is not None else ()
    return norm, (*notes, *used), tuple(f"{printable(statistics[1])}: {printable(name, 60)}" for name in unread)


def _check(drawn: Blueprint) -> None:
    try:
        blueprints.check(drawn)
    except InputError as error:
        raise stated.differ([str(error).split(": ")[0]], drawn.spec) from error


def _refuse_unsupported(saved: Saved, spec: Spec) -> None:
    entry, kwargs = saved.settings.get("policy_class"), saved.settings.get("policy_kwargs")
    module = str(entry.get("__module__", "")) if isinstance(entry, Mapping) else ""
    if module and not module.startswith(("stable_baselines3.", "sb3_contrib.")):
        raise InputError(
            f"{saved.name}: its policy is a class of module {printable(module)!r}, whose forward pass is not in the file. {networks.SUPPORTED}"
        )
    extractor = str(kwargs.get("features_extractor_class", "")) if isinstance(kwargs, Mapping) else ""
    if extractor and not extractor.endswith((".FlattenExtractor'>", ".CombinedExtractor'>")):
        raise InputError(f"{saved.name}: features extractor {printable(extractor)} is not read. {networks.SUPPORTED}")
    inside = spec.observation_space
    for space in inside.spaces.values() if isinstance(inside, gym.spaces.Dict) else (inside,):
        if isinstance(space, gym.spaces.Box) and len(space.shape) == 3 and space.dtype == np.uint8:
            raise InputError(f"{saved.name}: image observations {space.shape} are not read. {networks.SUPPORTED}")


# ---------------------------------------------------------------- without a zip


def from_weights(weights: Mapping[str, Array], name: str) -> Saved:
    """A state dict saved by itself, read as the policy of a zip that states nothing."""
    return Saved(name, {}, weights, "", (), {})
