"""Python in one file: policy.py needs numpy only, holds its weights, and acts as the policy does.

    from policy import Policy
    policy = Policy(); action = policy.step(obs)    # policy.reset() at every episode's start

Its code is Limbeck's own reference (`pythonsource`). Names and spaces of users are data in it: a literal that is read back
before the file is written, never code.
"""

from __future__ import annotations

import ast
import base64
import math
import pprint
import textwrap
from dataclasses import fields
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from limbeck import blueprints, layerfiles, spaces, storage
from limbeck.contracts import (
    Array,
    Artifact,
    Blueprint,
    Head,
    Layer,
    Parallel,
    Policy,
    Shared,
    Sparse,
    Tree,
    memory_of,
)
from limbeck.contracts.quantised import storage_bits
from limbeck.errors import InputError
from limbeck.exporters.contract import Contract, check_exportable, input_layout
from limbeck.exporters.onefile import policy as pythonpolicy
from limbeck.exporters.onefile.source import Excerpt
from limbeck.runtimes import numpy as reference
from limbeck.runtimes import python_file

FILE = "policy.py"


def export(blueprint: Blueprint, folder: Path) -> Artifact:
    """Write policy.py."""
    check_exportable(blueprint)
    content = generate(blueprint).encode("ascii")
    storage.write_bytes(folder / FILE, content)
    return Artifact("python", folder, (FILE,), len(content), compiled=True)


def load(folder: Path, contract: Contract) -> Policy:
    """Run the file. It is code: play only artefacts from people you trust."""
    return python_file.load(folder / FILE, contract.spec, contract.head)


def missing() -> str:
    return ""


# ---------------------------------------------------------------- writing

_HEAD = '''"""A policy that needs numpy only. Written by Limbeck; do not edit.

    policy = Policy()
    policy.reset()               # at every episode's start
    action = policy.step(obs)    # one observation as the environment gives it, the executed action back
"""

from __future__ import annotations

import base64
import math
from types import SimpleNamespace
from typing import Any

import numpy as np

%s = Any  # the words of the annotations below
'''

_TAIL = '''
class Policy(Player):
    """The player with this file's policy."""

    def __init__(self) -> None:
        super().__init__(DESCRIBED, stored(DESCRIBED["arrays"], base64.b64decode(WEIGHTS)))
'''


def generate(blueprint: Blueprint) -> str:
    """The text of policy.py, ASCII."""
    arrays: dict[str, Array] = {}
    described = _described(blueprint, arrays)
    little = {name: array.astype(array.dtype.newbyteorder("<"), copy=False) for name, array in arrays.items()}
    described["arrays"] = [(name, list(array.shape), array.dtype.str) for name, array in little.items()]
    content = b"".join(array.tobytes() for array in little.values())
    packed = textwrap.wrap(base64.b64encode(content).decode(), 110)
    weights = "WEIGHTS = (\n" + "".join(f'    "{line}"\n' for line in packed) + ")\n"
    code = _code(blueprint)
    parts = [_HEAD % " = ".join(code.undefined_words), *code.parts, *code.replaced.values()]
    return "\n\n".join(
        [*(part.strip("\n") + "\n" for part in parts), _TAIL, f"DESCRIBED = {_literal(described)}\n", weights]
    )


def _code(blueprint: Blueprint) -> Excerpt:
    """What this policy's layers need of the reference runtime, and the player."""
    kinds = sorted(set(_kinds(blueprint.layers)))
    plain, steps = ({kind: table[kind] for kind in kinds if kind in table} for table in _tables())
    apply = ", ".join(f'"{kind}": {function.__name__}' for kind, function in plain.items())
    step = ", ".join(f'"{kind}": ({ends!r}, {function.__name__})' for kind, (ends, function) in steps.items())
    code = Excerpt({"_APPLY": f"_APPLY = {{{apply}}}", "_STEP": f"_STEP: Any = {{{step}}}"})
    for function in (*plain.values(), *(function for _, function in steps.values())):
        code.add(reference.__name__, function.__name__)
    for name in ("Player", "stored"):
        code.add(pythonpolicy.__name__, name)
    return code


def _tables() -> tuple[dict[str, Any], dict[str, Any]]:
    """The reference's functions of layers without and with memory, by kind."""
    return reference.__dict__["_APPLY"], reference.__dict__["_STEP"]


def _kinds(layers: tuple[Layer, ...]) -> list[str]:
    found = []
    for layer in layers:
        found.append(layer.kind)
        if isinstance(layer, Shared):
            found += _kinds(layer.layers)
        if isinstance(layer, Parallel):
            found += [kind for branch in layer.branches for kind in _kinds(branch)]
    return found


def _literal(value: Any) -> str:
    """Plain data as a Python literal in ASCII, which reads back as the same data."""
    text = pprint.pformat(value, width=110, compact=True, sort_dicts=False)
    text = text.encode("ascii", "backslashreplace").decode()
    if ast.literal_eval(text) != value:
        raise InputError("the policy's names and spaces cannot be written as a Python literal. Rename them.")
    return text


# ---------------------------------------------------------------- describing


def _described(blueprint: Blueprint, arrays: dict[str, Array]) -> dict[str, Any]:
    spec, view, norm = blueprint.spec, blueprint.view, blueprint.normaliser
    width = spaces.flat_size(spec.observation_space, view)
    memory = {"history": (view.history - 1) * width} if view.history > 1 else {}
    if norm is not None:
        arrays["normaliser.mean"], arrays["normaliser.scale"] = norm.mean, norm.scale
    acted = spec.action_space
    return {
        "name": blueprint.name,
        "task": spec.name,
        "parts": [
            {key: part[key] for key in ("key", "kind", "count", "start") if key in part}
            for part in input_layout(spec.observation_space, view)
        ],
        "view": {"indices": view.indices, "history": view.history, "padding": view.padding},
        "normaliser_clip": None if norm is None else _number(norm.clip),
        "memory": memory | dict(memory_of(blueprint.layers)),
        "layers": [_layer(layer, f"layers.{i}", arrays) for i, layer in enumerate(blueprint.layers)],
        "head": _head(blueprint.head),
        "action_dtype": str(acted.dtype),
        "box": _box(acted) if isinstance(acted, gym.spaces.Box) else None,
    }


def _layer(layer: Layer, place: str, arrays: dict[str, Array]) -> dict[str, Any]:
    described: dict[str, Any] = {"kind": layer.kind}
    if isinstance(layer, layerfiles.Narrow):
        return described | _narrow(layer, place, arrays)
    stored = {f.name: getattr(layer, f.name) for f in fields(layer)}
    if isinstance(layer, (Tree, Sparse)):
        described |= {"sums": layer.terms.place.tolist(), "filled": layer.terms.filled}
        arrays[f"{place}.terms"] = layer.terms.weight
        if isinstance(layer, Tree):
            stored = {"threshold": layer.threshold, "rows": layer.rows, "children": layer.children}
        else:
            stored = {"offset": layer.offset}
    for name, value in stored.items():
        if isinstance(value, np.ndarray):
            arrays[f"{place}.{name}"] = value
        elif name == "layers":
            described[name] = [_layer(inner, f"{place}.layers.{i}", arrays) for i, inner in enumerate(value)]
        elif name == "branches":
            described[name] = [
                [_layer(inner, f"{place}.branches.{k}.{i}", arrays) for i, inner in enumerate(branch)]
                for k, branch in enumerate(value)
            ]
        elif isinstance(value, float) and not math.isfinite(value):
            arrays[f"{place}.{name}"] = np.array(value, np.float32)
        else:
            described[name] = value
    return {**described, "arrays": [n for n in stored if f"{place}.{n}" in arrays]}


def _narrow(layer: layerfiles.Narrow, place: str, arrays: dict[str, Array]) -> dict[str, Any]:
    """Whole numbers in the bits they need, as a policy's own file holds them."""
    made: dict[str, Array] = {}
    (stored,) = layerfiles.to_arrays("", (layer,), made)
    named = {name.rpartition(".")[2]: array for name, array in made.items()}
    arrays |= {f"{place}.{name}": array for name, array in named.items()}
    described = {key: value for key, value in stored.items() if key != "type"} | {"arrays": list(named)}
    if (bits := storage_bits(layer.width)) == 8:
        return described
    weights = {name: getattr(layer, name).shape for name in named if name.startswith("weight")}
    return described | {"packed": bits, "shapes": weights}


def _head(head: Head) -> dict[str, Any]:
    described = blueprints.head_to_json(head)
    return {key: described[key] for key in ("kind", "sizes", "low", "high", "start", "shape")} | {
        "discrete": head.discrete
    }


def _box(space: gym.spaces.Box) -> dict[str, Any]:
    low, high = ([_number(v) for v in np.asarray(b).reshape(-1).tolist()] for b in (space.low, space.high))
    return {"shape": list(space.shape), "dtype": str(space.dtype), "low": low, "high": high}


def _number(value: float | int) -> float | int | str:
    return value if math.isfinite(value) else str(value)
