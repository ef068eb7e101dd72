"""contract.json: everything somebody needs to feed an artefact and to read its answer, and the card that says it in words.

Also the one description of the artefact's input: the flat observation of the view's keys, in the view's order, one-hot
where a part is discrete, then the action mask. `indices`, normaliser and history are inside the artefact.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from limbeck import blueprints, spaces, storage
from limbeck.contracts import Blueprint, Head, Layer, Spec, View, layer_arrays, memory_of
from limbeck.errors import InputError, StorageError, printable
from limbeck.exporters import replaying

FORMAT = "limbeck-artifact-1"
CONTRACT = "contract.json"
README = "README.md"


@dataclass(frozen=True)
class Contract:
    """What a runtime needs to know about an artefact that plays."""

    spec: Spec
    head: Head
    view: View
    targets: tuple[str, ...]


# ---------------------------------------------------------------- the input


def input_view(view: View) -> View:
    """The part of a view that the caller applies: the keys, and the mask after them. The rest is inside the artefact."""
    return View(keys=view.keys, mask=view.mask)


def input_layout(space: gym.Space[Any], view: View) -> list[dict[str, Any]]:
    """The parts of the flat input in order: key, offset, count, kind, and bounds or start.

    Kinds: "numbers", "one-hot", and at the end "action mask" (1 allowed, 0 not).

    >>> input_layout(gym.spaces.Discrete(3, start=1), View())
    [{'key': '', 'offset': 0, 'count': 3, 'kind': 'one-hot', 'start': 1}]
    """
    if isinstance(space, gym.spaces.Dict):
        keys = view.keys if view.keys is not None else sorted(k for k in space.spaces if k != view.mask)
        parts = [(key, entry) for key in keys for entry in _entries(space[key])]
        if view.mask is not None:
            size = spaces.flat_size(space, View(keys=(view.mask,)))
            parts.append((view.mask, {"count": size, "kind": "action mask"}))
    else:
        parts = [("", entry) for entry in _entries(space)]
    rows: list[dict[str, Any]] = []
    for key, entry in parts:
        offset = rows[-1]["offset"] + rows[-1]["count"] if rows else 0
        rows.append({"key": key, "offset": offset, **entry})
    return rows


def _entries(space: gym.Space[Any]) -> list[dict[str, Any]]:
    match space:
        case gym.spaces.Discrete():
            return [{"count": int(space.n), "kind": "one-hot", "start": int(space.start)}]
        case gym.spaces.MultiDiscrete():
            pairs = zip(space.nvec.reshape(-1), space.start.reshape(-1), strict=True)
            return [{"count": int(n), "kind": "one-hot", "start": int(s)} for n, s in pairs]
    described = spaces.to_json(space)
    limits: dict[str, Any] = {k: described[k] for k in ("low", "high") if k in described}
    return [{"count": int(np.prod(space.shape or ())), "kind": "numbers", "shape": list(space.shape or ()), **limits}]


def action_count(head: Head) -> int:
    """How many numbers one executed action has."""
    return (
        1
        if head.kind in ("categorical", "q")
        else len(head.sizes)
        if head.kind == "multicategorical"
        else sum(head.sizes)
    )


# ---------------------------------------------------------------- what may be exported


def check_exportable(blueprint: Blueprint) -> None:
    """Refuse policies whose numbers or shapes are wrong, before anything is written."""
    blueprints.check(blueprint)
    arrays = [a for layer in blueprint.layers for a in layer_arrays(layer)]
    if blueprint.normaliser is not None:
        arrays += [blueprint.normaliser.mean, blueprint.normaliser.scale]
    if not all(np.isfinite(a).all() for a in arrays):
        raise InputError(
            f"policy {printable(blueprint.name)!r} holds NaN or infinite weights. Allowed: finite numbers. Export a sound checkpoint."
        )
    if blueprint.normaliser is not None and not (blueprint.normaliser.scale > 0).all():
        raise InputError(
            f"policy {printable(blueprint.name)!r} has a normaliser with scales <= 0. Allowed: positive ones. Export the statistics again."
        )
    if not blueprint.layers:
        raise InputError(f"policy {printable(blueprint.name)!r} has no layers. Allowed: one or more.")


# ---------------------------------------------------------------- contract.json


def write(blueprint: Blueprint, folder: Path, targets: tuple[str, ...], meta: Mapping[str, Any]) -> None:
    """contract.json and README.md of an artefact folder; `meta` is plain data such as the teacher's SHA-256."""
    described = describe(blueprint, targets, meta)
    storage.write_json(folder / CONTRACT, described)
    storage.write_text(folder / README, _card(blueprint, described))


def describe(blueprint: Blueprint, targets: tuple[str, ...], meta: Mapping[str, Any]) -> dict[str, Any]:
    head, view, norm, space = blueprint.head, blueprint.view, blueprint.normaliser, blueprint.spec.observation_space
    return {
        "format": FORMAT,
        "limbeck": version("limbeck"),
        "name": blueprint.name,
        "task": blueprint.spec.name,
        "agents": blueprint.spec.agents,
        "targets": list(targets),
        "meta": storage.plain(meta),
        "input": {
            "name": "obs",
            "dtype": "float32",
            "size": spaces.input_size(space, view),
            "parts": input_layout(space, view),
            "indices": None if view.indices is None else list(view.indices),
            "history": view.history,
            "padding": view.padding,
            "normaliser": None if norm is None else {"mean": norm.mean, "scale": norm.scale, "clip": norm.clip},
        },
        "output": {
            "action": "executed: offset, clipped, squashed and scaled as the environment wants it",
            "dtype": "int" if head.discrete else "float32",
            "size": action_count(head),
            "params": head.width,
            "deterministic": True,
            "squash": "tanh" if head.kind in ("squashed", "tanh") else None,
            "clip": not head.discrete and any(map(math.isfinite, (*head.low, *head.high))),
        },
        "memory": {
            "kind": [*["history"] * (view.history > 1), *(name for name, _ in memory_of(blueprint.layers))],
            "reset": f"before the first observation of every episode; {_PADDING[view.padding]}, hidden states are 0",
        },
        "network": [_layer_words(layer) for layer in blueprint.layers],
        "parameters": blueprint.parameters,
        "multiply_adds": blueprint.multiply_adds,
        "head": blueprints.head_to_json(head),
        "view": blueprints.view_to_json(view),
        "observation_space": spaces.to_json(space),
        "action_space": spaces.to_json(blueprint.spec.action_space),
    }


_PADDING = {"first": "that observation fills the history", "zero": "the history holds zeros"}


def _layer_words(layer: Layer) -> str:
    return f"{layer.kind} {layer.inputs}x{layer.outputs} {getattr(layer, 'activation', '')}".rstrip()


def read(folder: Path) -> Contract:
    """The contract of an artefact folder."""
    _refuse_absent(folder)
    data = storage.read_json(folder / CONTRACT)
    try:
        if data["format"] != FORMAT:
            raise InputError(
                f"{folder} was written in format {printable(data['format'])}, this version reads {FORMAT}. Update limbeck."
            )
        spec = Spec(
            spaces.from_json(data["observation_space"]),
            spaces.from_json(data["action_space"]),
            str(data["task"]),
            int(data.get("agents", 1)),
        )
        head, view = blueprints.head_from_json(data["head"]), blueprints.view_from_json(data["view"])
        spaces.check_view(spec.observation_space, view)
        targets = tuple(map(str, data["targets"]))
        if not all(re.fullmatch("[a-z0-9_]+", target) for target in targets):  # each is the name of a folder in here
            raise ValueError(f"targets {targets}")
        return Contract(spec, head, view, targets)
    except blueprints.DAMAGE as error:
        raise StorageError(
            f"{folder / CONTRACT} is damaged: {type(error).__name__} {printable(error)}. Export the policy again."
        ) from error


def intact(folder: Path) -> Contract:
    """The contract of an artefact folder whose files are those that were exported, checksums first.

    StorageError names a file that changed, InputError one of a target that the manifest does not list.
    """
    _refuse_absent(folder)
    if not (folder / storage.MANIFEST).is_file():
        raise InputError(
            f"{printable(folder)} has no {storage.MANIFEST}: its export did not finish. Export the policy again."
        )
    try:
        changed = storage.check_manifest(folder)
    except StorageError as error:  # without it nothing tells whose the files are, and it cannot be written by hand
        said = str(error).partition(" Re")[0]
        raise StorageError(f"{said} Export the policy again.") from error
    if changed:
        names = ", ".join(map(printable, changed))
        raise StorageError(f"{printable(folder)}: {names} is no longer what was exported. Export the policy again.")
    if CONTRACT in (listed := storage.read_manifest(folder)):
        contract = read(folder)
        needed = [replaying.FILE, *(name for target in contract.targets for name in _files(folder, target))]
    else:
        needed = [CONTRACT]
    if unlisted := [name for name in needed if name not in listed]:
        names = ", ".join(map(printable, unlisted))
        raise InputError(
            f"{printable(folder)}: {names} is not in {storage.MANIFEST}. Take away what is not of the export, or export the policy again."
        )
    return contract


def _files(folder: Path, target: str) -> list[str]:
    """What lies in a target's folder, relative to the artefact's; Python's caches are not read. Its name for nothing."""
    files = [path.relative_to(folder) for path in sorted((folder / target).rglob("*")) if not path.is_dir()]
    return [path.as_posix() for path in files if "__pycache__" not in path.parts] or [target]


def _refuse_absent(folder: Path) -> None:
    if not (folder / CONTRACT).is_file():
        raise InputError(f"{printable(folder)} holds no {CONTRACT}. Allowed: a folder that `limbeck export` wrote.")


# ---------------------------------------------------------------- the card

_USES = {
    "c": """## C
`c/policy.h`, one header, C99 or C++17, float32, no allocation, no global state.

    #define LIMBECK_IMPLEMENTATION              /* in one source; others include without it */
    #include "policy.h"

    limbeck_state memory;                       /* one per robot */
    float params[LIMBECK_PARAMS];
    limbeck_action action[LIMBECK_ACTIONS];
    limbeck_reset(&memory);                     /* at every episode's start */
    limbeck_step(&memory, obs, params, action); /* obs: LIMBECK_OBS floats */

Compile with `-O2` or `-O3`, and link `-lm` where the header includes math.h. `limbeck_state` holds the memory and, for
large networks, vectors too long for a small stack (the header names them): keep it off the stack there. Actions are
finite and in their range whatever comes in; `memory.strange` of `memory.steps` counts the steps whose observation was
not finite or outside of what training saw, `limbeck_outside(obs)` asks about one.
""",
    "onnx": """## ONNX
`onnx/policy.onnx`, opset 17. Inputs `obs` [N, I]; with memory also `first` [N] (true where an episode begins) and
`state_*`, to be fed back from the outputs `state_*_next`. Outputs `action` (executed) and `params`.
""",
    "onnx15": """## ONNX for Unity
`onnx15/policy.onnx`, the same graph in opset 15. Feed the states of every step back as above.
""",
    "onnx_int8": """## ONNX in int8
`onnx_int8/policy.onnx`, quantised by ONNX Runtime and lossy: `limbeck check` says how often it acts as the policy does.
`onnx_int8/answers.safetensors` holds what it says itself on the golden rows. A proof of the policy is not its proof.
""",
    "python": """## Python
`python/policy.py`, one file that needs numpy only.

    from policy import Policy
    policy = Policy()
    policy.reset()               # at every episode's start
    action = policy.step(obs)    # as the environment gives it, and as it wants it
""",
    "safetensors": """## safetensors
`safetensors/policy.safetensors`: arrays such as `layers.0.weight`; the policy described in the metadata. The package
`limbeck-runtime` plays it, and every other target, with numpy alone.
""",
    "wasm": """## WebAssembly
`wasm/policy.wasm`, a module without imports, and `wasm/policy.mjs`, its loader for browsers and node.

    import { load } from "./policy.mjs";
    const policy = await load(bytes);         // of policy.wasm
    policy.reset();                           // at every episode's start
    const action = policy.step(observation);  // the executed action; policy.obsSize numbers in
    policy.guard();                           // { level, steps, strange } of the episode
""",
    "sb3": """## Stable-Baselines3
`sb3/policy.zip` opens with `PPO.load` (`DQN.load` for a q head, `SAC.load` for a squashed one, `TD3.load` for a tanh one);
`model.predict(obs, deterministic=True)` is the student, its normaliser folded into the first layer. Go on with
`model = PPO.load("sb3/policy.zip", env=env); model.learn(...)`. Critics are untrained and PPO's spread of continuous
actions is a starting value: let the critic learn first, with the actor's parameters frozen
(`requires_grad_(False)`) for some ten thousand steps, or the first updates undo the student.
""",
    "numpy": """## numpy
`numpy/policy.safetensors`: the weights, with the whole policy described in the metadata.
""",
}


def _card(blueprint: Blueprint, described: Mapping[str, Any]) -> str:
    rows = "".join(_part_row(part) for part in described["input"]["parts"])
    masked = blueprint.view.mask is not None
    uses = "\n".join(_USES[target] for target in described["targets"] if target in _USES)
    return f"""# {_words(blueprint.name)} for {_words(blueprint.spec.name)}

{blueprint.parameters:,} parameters, {blueprint.multiply_adds:,} multiply-adds per step, head `{_words(blueprint.head.kind)}`,
deterministic. The normaliser, history, clipping and scaling are inside; the action is the executed one.

Input: {described["input"]["size"]} float32 numbers{", the action mask last (1 allowed, 0 not)" * masked}.

| key | from | count | kind |
|---|---|---|---|
{rows}
{uses}
`golden.safetensors` holds inputs and answers from visited states, resets included (of images the observations
only: flatten them); `limbeck check FOLDER` replays them.
`contract.json` states everything above for machines; `manifest.json` holds the SHA-256 of every file.
"""


def _part_row(part: Mapping[str, Any]) -> str:
    return f"| {_words(part['key'] or 'observation')} | {part['offset']} | {part['count']} | {part['kind']} |\n"


def _words(name: str) -> str:
    """A name safe in Markdown: letters, digits and a few signs."""
    return "".join(c if c.isalnum() or c in " _-.,:/=+" else "_" for c in name[:200])
