"""One saved policy as a Blueprint on a task: what it sees, its normaliser, its network and its head."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from limbeck import blueprints, spaces
from limbeck.contracts import Blueprint, Dense, Spec, View
from limbeck.errors import InputError, printable
from limbeck.teachers import normaliser, seeing, stated
from limbeck.teachers.normaliser import Normalising
from limbeck.teachers.sb3 import critics, extractors, families
from limbeck.teachers.sb3.critics import SavedCritic
from limbeck.teachers.sb3.extractors import Stretch
from limbeck.teachers.sb3.weights import SUPPORTED
from limbeck.teachers.sb3.zip import Saved

OBSERVATION = "observation"  # key of the observation beside an action mask
EXTRACTORS = ("FlattenExtractor", "NatureCNN", "CombinedExtractor")
_STATED = (
    "num_timesteps", "seed", "learning_rate", "gamma", "n_envs", "n_steps", "batch_size", "n_epochs", "gae_lambda",
    "ent_coef", "vf_coef", "tau", "buffer_size", "learning_starts", "gradient_steps", "use_sde", "n_quantiles",
)  # fmt: skip


# ---------------------------------------------------------------- what it is


def algorithm(saved: Saved) -> str:
    """The algorithm's name, inferred: the file does not state it."""
    family, settings = families.family_of(saved.weights, saved.name), saved.settings
    if family == "PPO or A2C":
        if masked(saved):
            return "MaskablePPO"
        if "lstm_actor.weight_ih_l0" in saved.weights:
            return "RecurrentPPO"
        if "cg_max_steps" in settings:
            return "TRPO"
        return "PPO" if "clip_range" in settings else "A2C" if settings else family
    if family == "SAC" and "top_quantiles_to_drop_per_net" in settings:
        return "TQC"
    if family == "SAC" and saved.said_of_class("__module__").startswith("sb3_contrib.crossq"):
        return "CrossQ"
    if family == "TD3" and settings.get("policy_delay") == 1 and settings.get("target_noise_clip") == 0:
        return "DDPG"
    return family


def masked(saved: Saved) -> bool:
    """Whether it chooses under an action mask."""
    return saved.said_of_class("__module__").startswith(("sb3_contrib.ppo_mask", "sb3_contrib.common.maskable"))


def facts(saved: Saved) -> dict[str, Any]:
    """What the file says in the open that a reader of the report may want."""
    found = {key: saved.settings[key] for key in _STATED if isinstance(saved.settings.get(key), (int, float))}
    for key in ("observation_space", "action_space"):
        space = stated.space_of(saved.settings.get(key))
        if space is not None:
            found[key] = printable(stated.described(space), 200)
    if "net_arch" in saved.policy_kwargs:
        found["net_arch"] = printable(saved.policy_kwargs["net_arch"])
    return {**found, "stable_baselines3": saved.version, "trained_normalised": trained_normalised(saved)}


def trained_normalised(saved: Saved) -> bool:
    """Whether training surely ran under VecNormalize: only then do on-policy algorithms keep an unnormalised observation."""
    return "gae_lambda" in saved.settings and saved.settings.get("_last_original_obs") is not None


def spec_of(saved: Saved) -> Spec:
    """Spaces from the file's own print-outs, for use without a task; with a place for the mask where it needs one."""
    observation, action = (stated.space_of(saved.settings.get(f"{k}_space")) for k in ("observation", "action"))
    if observation is None or action is None:
        raise InputError(f"{saved.name} does not state its spaces in the open. Name the environment with --env.")
    if masked(saved):
        mask = gym.spaces.MultiBinary(spaces.head_for(action).width)
        inside = dict(observation.spaces) if isinstance(observation, gym.spaces.Dict) else {OBSERVATION: observation}
        observation = gym.spaces.Dict({**inside, spaces.MASK: mask})
    return Spec(observation, action, Path(saved.name).stem)


# ---------------------------------------------------------------- rebuilding it


@dataclass(frozen=True)
class Statistics:
    """A VecNormalize file in hand."""

    content: bytes
    name: str


@dataclass(frozen=True)
class Rebuilt:
    """A policy on the task's spaces, and the critic that its actor was trained with where it is read."""

    drawn: Blueprint
    notes: tuple[str, ...]
    unread: tuple[str, ...]
    critic: SavedCritic | None


def policy(
    saved: Saved, spec: Spec, statistics: Statistics | None, given: View | None = None
) -> tuple[Blueprint, tuple[str, ...], tuple[str, ...]]:
    """(blueprint, notes, further unread names) of `rebuild`."""
    found = rebuild(saved, spec, statistics, given)
    return found.drawn, found.notes, found.unread


def rebuild(saved: Saved, spec: Spec, statistics: Statistics | None, given: View | None = None) -> Rebuilt:
    """The policy of a zip; `given` is what the user says the teacher sees."""
    _refuse_unsupported(saved)
    theirs = _theirs(saved, spec)
    view, notes = _view(saved, theirs, spec, given)
    plain = _untransposed(saved, theirs, spec, view, given)
    norm, more = _normalising(saved, spec, plain, statistics)
    sight = _sight(saved, theirs.observation_space, spec, plain, norm)
    kwargs = saved.policy_kwargs
    said = families.Said(
        spec.action_space,
        extractors.extractor(sight),
        families.activation_of(kwargs.get("activation_fn")),
        kwargs["squash_output"] is True if "squash_output" in kwargs else None,
        kwargs.get("use_expln") is True,
        _clip_mean(kwargs),
        _number(kwargs, "batch_norm_eps", 1e-3),
        "LinearPolicy" in saved.said_of_class("__init__"),
    )
    network = families.build(saved.weights, said, saved.name)
    head = spaces.head_for(spec.action_space, network.kind)
    drawn = Blueprint(spec, head, network.layers, plain, norm.normaliser, network.value_layers, Path(saved.name).stem)
    _check(drawn)
    notes = (*notes, *network.notes, *_assumed(saved, said, drawn), *_start_note(theirs.action_space), *more)
    critic = critics.read(saved.weights, algorithm(saved), said.extract, said.activation or "relu", drawn)
    return Rebuilt(drawn, (*notes, *norm.notes), norm.unread, critic)


def _theirs(saved: Saved, spec: Spec) -> Spec:
    """The spaces it was trained on: those that the file prints, else the task's, as Stable-Baselines3 would see them."""
    observation, action = (stated.space_of(saved.settings.get(f"{k}_space")) for k in ("observation", "action"))
    if observation is None:
        entry = saved.settings.get("observation_space")
        said = str(entry.get(":type:", "")) if isinstance(entry, Mapping) else ""
        if said.endswith(".Dict'>") and not isinstance(spec.observation_space, gym.spaces.Dict):
            raise stated.differ([f"observations: teacher Dict, task {stated.shape_of(spec.observation_space)}"], spec)
        observation = _as_trained(spec.observation_space)
    return Spec(observation, action or spec.action_space, spec.name)


def _as_trained(space: gym.Space[Any]) -> gym.Space[Any]:
    """The space as Stable-Baselines3 hands it to a policy: images with channels first, no action mask."""
    if isinstance(space, gym.spaces.Dict):
        return gym.spaces.Dict({k: _as_trained(v) for k, v in space.spaces.items() if k != spaces.MASK})
    if stated.is_image(space) and int(np.argmin(space.shape or ())) != 0:
        height, width, channels = space.shape or (0, 0, 0)
        return gym.spaces.Box(0, 255, (channels, height, width), np.uint8)
    return space


def _view(saved: Saved, theirs: Spec, spec: Spec, given: View | None) -> tuple[View, tuple[str, ...]]:
    """What it sees of the task's observation, the mask included where it chooses under one."""
    mask = None
    if masked(saved):
        mask = given.mask if given is not None and given.mask is not None else spaces.MASK
        offered = spec.observation_space
        if not isinstance(offered, gym.spaces.Dict) or mask not in offered.spaces:
            raise InputError(
                f"{saved.name} is a MaskablePPO, which chooses among the actions that a mask allows; {printable(spec.name)} offers no {mask!r}. "
                "Give an environment with a method action_masks(), or a Dict observation with such an entry."
            )
        width, size = spaces.head_for(spec.action_space).width, spaces.flat_size(offered[mask])
        if size != width:
            raise InputError(f"the action mask has {size} numbers, {spec.action_space} needs {width}. Mend the mask.")
    keys = tuple(theirs.observation_space.spaces) if isinstance(theirs.observation_space, gym.spaces.Dict) else None
    return seeing.view_on(theirs, View(keys=keys, mask=mask), spec, given)


def _images(saved: Saved) -> set[str]:
    prefixes = ("pi_features_extractor", "features_extractor", "actor.features_extractor", "q_net.features_extractor",
                "quantile_net.features_extractor")  # fmt: skip
    return set().union(*(extractors.images_in(saved.weights, prefix) for prefix in prefixes))


def _untransposed(saved: Saved, theirs: Spec, spec: Spec, view: View, given: View | None) -> View:
    """The view without indices that only turn images which a convolution can take as they lie."""
    chosen = given is not None and given.indices is not None
    if view.indices is None or chosen or view.history > 1:
        return view
    pairs = _pairs(theirs.observation_space, spec, view)
    turned = {key for key, mine, offered in pairs if seeing.transposition(mine, offered) is not None}
    return replace(view, indices=None) if turned <= _images(saved) else view


def _pairs(theirs: gym.Space[Any], spec: Spec, view: View) -> list[tuple[str, gym.Space[Any], gym.Space[Any]]]:
    """Key of the extractor, the teacher's space and the task's, for everything the teacher sees."""
    offered = spec.observation_space
    inside = offered if isinstance(offered, gym.spaces.Dict) else None
    if isinstance(theirs, gym.spaces.Dict):
        keys = view.keys or ()
        ours = [inside[key] for key in keys] if inside is not None else [offered]
        return list(zip(theirs.spaces, theirs.spaces.values(), ours, strict=False))
    alone = inside[view.keys[0]] if inside is not None and view.keys is not None and len(view.keys) == 1 else offered
    return [("", theirs, alone)]


def _sight(saved: Saved, theirs: gym.Space[Any], spec: Spec, view: View, norm: Normalising) -> tuple[Stretch, ...]:
    """How the row that the view makes is laid out, key by key in the order of the network."""
    divides = saved.policy_kwargs.get("normalize_images") is not False
    width = spaces.flat_size(spec.observation_space, view) * view.history
    gain = np.ones(width) if norm.gain is None else np.tile(norm.gain, view.history)
    result, begin = [], 0
    pairs = _pairs(theirs, spec, view)
    for key, mine, offered in pairs:
        end = begin + spaces.flat_size(mine) if len(pairs) > 1 else width
        scale = 1 / 255 if divides and stated.is_image(mine) else 1.0
        layout = "hwc" if view.indices is None and _lies_last(mine, offered) else "chw"
        shape = tuple(mine.shape or ())
        result.append(Stretch(key, begin, end, shape, "hwc" if layout == "hwc" else "chw", gain[begin:end] * scale))
        begin = end
    return tuple(result)


def _lies_last(theirs: gym.Space[Any], offered: gym.Space[Any]) -> bool:
    order = seeing.transposition(theirs, offered)
    return order is not None and (offered.shape or ())[2:] == (theirs.shape or ())[:1]


def _normalising(
    saved: Saved, spec: Spec, view: View, statistics: Statistics | None
) -> tuple[Normalising, tuple[str, ...]]:
    if statistics is None:
        missing = (
            "it was trained under VecNormalize, whose statistics are not in the zip: give the file with --normaliser"
        )
        return Normalising(), (missing,) if trained_normalised(saved) else ()
    name = printable(statistics.name)
    norm = normaliser.read(statistics.content, statistics.name, spec.observation_space, view)
    used = (f"observations are normalised by {name}",) if norm.normaliser is not None else ()
    return replace(norm, unread=tuple(f"{name}: {printable(entry, 60)}" for entry in norm.unread)), used


def _assumed(saved: Saved, said: families.Said, drawn: Blueprint) -> tuple[str, ...]:
    """A note where an activation that shapes the policy had to be taken from the algorithm's defaults."""
    behind = [layer for layer in drawn.layers[:-1] if isinstance(layer, Dense)]
    if said.activation is not None or not behind or (_images(saved) and len(behind) < 2):
        return ()
    return (f"the file names no activation: {behind[-1].activation} is assumed, the default of {algorithm(saved)}",)


def _start_note(theirs: gym.Space[Any]) -> tuple[str, ...]:
    start = np.asarray(getattr(theirs, "start", 0))
    if not start.any():
        return ()
    return (
        f"its actions count from {start.reshape(-1)[0]}, which is added here; Stable-Baselines3 itself plays them from 0",
    )


def _clip_mean(kwargs: Mapping[str, Any]) -> float:
    value = _number(kwargs, "clip_mean", 2.0)
    return value if value > 0 else math.inf


def _number(kwargs: Mapping[str, Any], key: str, default: float) -> float:
    value = kwargs.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e30:
        raise InputError(f"the file states {key} {printable(value)}. Allowed: a number. Save it again.")
    return float(value)


def _check(drawn: Blueprint) -> None:
    try:
        blueprints.check(drawn)
    except InputError as error:
        raise stated.differ([str(error).split(": ")[0]], drawn.spec) from error


def _refuse_unsupported(saved: Saved) -> None:
    module = saved.said_of_class("__module__")
    if module and not module.startswith(("stable_baselines3.", "sb3_contrib.")):
        raise InputError(
            f"{saved.name}: its policy is a class of module {printable(module)!r}, whose forward pass is not in the file. {SUPPORTED}"
        )
    named = saved.policy_kwargs.get("features_extractor_class")
    usual = {f"<class 'stable_baselines3.common.torch_layers.{name}'>" for name in EXTRACTORS}
    if named is not None and str(named) not in usual:
        raise InputError(f"{saved.name}: features extractor {printable(named)} is not read. {SUPPORTED}")
