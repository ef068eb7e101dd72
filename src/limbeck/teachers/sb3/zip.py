"""Stable-Baselines3 zips: the weights and what `data` states in the open. Every pickled blob is dropped unread.

A zip that hides code loads, its code never runs, and `unread` names the entries that hold it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from limbeck.contracts import Array
from limbeck.errors import InputError, printable
from limbeck.teachers import inert
from limbeck.teachers.archive import Archive

WEIGHTS, SETTINGS = "policy.pth", "data"
PICKLED = ":serialized:"  # key of an entry of `data` under which a pickle lies as text
_VERSION, _SYSTEM = "_stable_baselines3_version", "system_info.txt"
_USUAL_MEMBERS = {
    "pytorch_variables.pth", "policy.optimizer.pth", "actor.optimizer.pth", "critic.optimizer.pth",
    "ent_coef_optimizer.pth",
}  # fmt: skip
_USUAL_KEYS = {  # what Stable-Baselines3 and sb3-contrib themselves may write as a pickle inside `data`
    "policy_class", "policy_kwargs", "observation_space", "action_space", "action_noise", "learning_rate", "ent_coef",
    "_last_obs", "_last_episode_starts", "_last_original_obs", "_last_dones", "ep_info_buffer", "ep_success_buffer",
    "rollout_buffer_class", "rollout_buffer_kwargs", "replay_buffer_class", "replay_buffer_kwargs", "clip_range",
    "clip_range_vf", "lr_schedule", "train_freq", "exploration_schedule", "target_entropy", "target_kl", "seed",
    "start_time", "tensorboard_log", "batch_norm_stats", "batch_norm_stats_target", "actor_batch_norm_stats",
    "critic_batch_norm_stats", "actor_batch_norm_stats_target", "critic_batch_norm_stats_target", "_last_lstm_states",
    "quantile_batch_norm_stats", "quantile_batch_norm_stats_target", "delta_std", "delta_std_schedule", "weights",
    "old_features", "processes",
}  # fmt: skip


@dataclass(frozen=True)
class Saved:
    """An opened zip: plain settings, weights, and the names of what was left unread."""

    name: str
    settings: Mapping[str, Any]
    weights: Mapping[str, Array]
    version: str
    unread: tuple[str, ...]

    @property
    def policy_kwargs(self) -> Mapping[str, Any]:
        """The keyword arguments of the policy; what was no plain data there is its print."""
        kwargs = self.settings.get("policy_kwargs")
        return kwargs if isinstance(kwargs, Mapping) else {}

    def said_of_class(self, key: str) -> str:
        """What the settings print of the policy's class: its `__module__`, its `__init__`; empty where they do not."""
        entry = self.settings.get("policy_class")
        return str(entry.get(key, "")) if isinstance(entry, Mapping) else ""


def is_sb3(archive: Archive) -> bool:
    return SETTINGS in archive.members or WEIGHTS in archive.members


def read(archive: Archive) -> Saved:
    """Settings and weights. Raises InputError for damage, UnsafeError for weights that hold more than tensors."""
    values = _json(archive.read(SETTINGS), archive.name)
    value = inert.read_torch_zip(archive.read(WEIGHTS), f"{archive.name}: {WEIGHTS}")
    pickled = [key for key, entry in values.items() if isinstance(entry, dict) and PICKLED in entry]
    settings = {key: _open_part(entry) for key, entry in values.items()}
    version = archive.read(_VERSION)[:40].decode("ascii", "replace").strip() if _VERSION in archive.members else ""
    weights = inert.tensors(value, f"{archive.name}: {WEIGHTS}")
    return Saved(archive.name, settings, weights, printable(version), _unread(archive, pickled))


def from_weights(weights: Mapping[str, Array], name: str) -> Saved:
    """A state dict saved by itself, read as the policy of a zip that states nothing."""
    return Saved(name, {}, weights, "", ())


def _json(content: bytes, name: str) -> dict[str, Any]:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: its settings are no JSON ({printable(error)}). Save the teacher again.") from error
    if not isinstance(values, dict):
        raise InputError(f"{name}: its settings are a {type(values).__name__}, not a table. Save the teacher again.")
    return values


def _open_part(entry: Any) -> Any:
    return {k: v for k, v in entry.items() if k != PICKLED} if isinstance(entry, dict) else entry


def _unread(archive: Archive, pickled: list[str]) -> tuple[str, ...]:
    odd = " (not written by Stable-Baselines3)"
    keys = [f"{SETTINGS}: {printable(key, 60)}{'' if key in _USUAL_KEYS else odd}" for key in pickled]
    known = {SETTINGS, WEIGHTS, _VERSION, _SYSTEM}
    members = [m for m in archive.members if m not in known]
    return tuple(keys + [f"{printable(m, 60)}{'' if m in _USUAL_MEMBERS else odd}" for m in members])
