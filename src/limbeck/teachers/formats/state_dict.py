"""Weights without a program: torch state dicts (zip or bare pickle) and safetensors.

Their names decide what they are: a Stable-Baselines3 policy saved by itself, or a layout of `layouts/`, for which
--architecture may name another activation than the layout assumes (`--architecture tanh`). For all other files the
user says with --architecture what to compute.
"""

from __future__ import annotations

import re
from typing import Any

from limbeck.contracts import Teacher, TeacherInfo
from limbeck.contracts.layers import ACTIVATIONS
from limbeck.errors import InputError, UnsafeError, printable
from limbeck.teachers import described, inert, keras_layers, layouts, safetensors_file, sb3
from limbeck.teachers.architecture import EXAMPLE
from limbeck.teachers.archive import listed
from limbeck.teachers.files import File, Given, info
from limbeck.teachers.formats import program, sb3_zip
from limbeck.teachers.plaindata import Opaque
from limbeck.teachers.tensors import Tensors

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".safetensors", ".cleanrl_model")
MAX_WRAPPERS = 4  # one inside the other
_WRAPPERS = ("state_dict", "model_state_dict", "model", "model_weights", "policy", "network", "params", "weights")


def recognises(file: File) -> bool:
    if file.archive is not None:
        others = sb3.is_sb3(file.archive), keras_layers.is_keras(file.archive), program.recognises(file)
        return not any(others)
    if safetensors_file.looks_like(file.content):
        return "limbeck" not in safetensors_file.read(file)[1]
    return file.content[:1] == b"\x80" or file.content[-1:] == b"."


def load(file: File, given: Given) -> Teacher:
    given.refuse(file, "trust")
    value = _value(file)
    if given.architecture is not None and given.architecture not in ACTIVATIONS:
        drawn = described.draw(_tensors(value, file), given.architecture, given.needs_spec(file), given)
        return layouts.teacher(drawn, file, given, "torch")
    if _is_sb3(value):
        given.refuse(file, "kind", "architecture")
        return sb3_zip.with_statistics(sb3.from_weights(value, file.name), file, given, "torch")
    found = layouts.of(value)
    if found is None:
        raise _unknown(value, file, given)
    name, layout = found
    return layouts.teacher(layout.draw(value, given.needs_spec(file), given, file.name), file, given, name)


def inspect(file: File) -> TeacherInfo:
    value = _value(file)
    if _is_sb3(value):
        return sb3_zip.about(sb3.from_weights(value, file.name), file, "torch")
    found = layouts.of(value)
    if found is not None:
        drawn = found[1].draw(value, None, Given(), file.name)
        return info(file, found[0], drawn.algorithm, {**layouts.shape(drawn), **drawn.facts}, (), drawn.notes)
    tensors = _tensors(value, file)
    guess = described.suggested(tensors, None)
    facts = {"parameters": sum(int(a.size) for a in tensors.arrays.values()), "tensors": tensors.contents(40)}
    notes = ["it does not say how to compute with its tensors: that is for --architecture"]
    return info(
        file, "torch", "unknown", facts, (), (*notes, *([f"perhaps --architecture {_quoted(guess)}"] if guess else []))
    )


def _is_sb3(value: Any) -> bool:
    weights = layouts.state_dict(value)
    return weights is not None and sb3.known(weights)


def _unknown(value: Any, file: File, given: Given) -> InputError:
    tensors = _tensors(value, file)
    guess = described.suggested(tensors, given.spec.action_space if given.spec is not None else None)
    what = f"Perhaps --architecture {_quoted(guess)}" if guess else f"Say it with --architecture, as in '{EXAMPLE}'"
    return InputError(
        f"{printable(file.name)} does not say how to compute with its tensors. {tensors.contents()} {what}. Build the torch.nn.Module in Python and pass it for what no line describes."
    )


def _quoted(text: str) -> str:
    return printable(f"'{text}'", 1000)


def _tensors(value: Any, file: File) -> Tensors:
    """All tensors of a file in its order, without the names that only wrap them. Sorted files get their numbers in order."""
    for _ in range(MAX_WRAPPERS):
        if not isinstance(value, dict):
            break
        inside = [key for key in _WRAPPERS if layouts.state_dict(value.get(key)) is not None or _wraps(value.get(key))]
        if not inside:
            break
        value = value[inside[0]]
    arrays = layouts.flattened(value, file.name)
    if not arrays:
        raise InputError(
            f"{printable(file.name)} is no state dict: no tensors with names are in it. Allowed: names with their tensors."
        )
    if safetensors_file.looks_like(file.content):
        arrays = dict(sorted(arrays.items(), key=lambda item: _natural(item[0])))
    return Tensors(arrays, file.name)


def _wraps(value: Any) -> bool:
    return isinstance(value, dict) and any(layouts.state_dict(value.get(key)) is not None for key in _WRAPPERS)


def _natural(key: str) -> list[tuple[int, int, str]]:
    """Sorts body.10 after body.2."""
    parts = re.split(r"(\d{1,9})", key)
    return [(1, int(p), "") if p.isdigit() else (0, 0, p) for p in parts]


# ---------------------------------------------------------------- reading


def _value(file: File) -> Any:
    """What the file holds: plain data and arrays. Raises UnsafeError for pickles that are more than that."""
    if safetensors_file.looks_like(file.content) and file.archive is None:
        return safetensors_file.read(file)[0]
    value = inert.read_torch_zip(file.content, file.name) if file.archive is not None else _pickled(file)
    opaque = inert.opaque_names(value)
    if opaque:
        raise UnsafeError(
            f"{printable(file.name)} holds more than tensors: unpickling it would use {listed(opaque)}. Nothing was run. Allowed: a plain state dict; save module.state_dict() or safetensors."
        )
    return value["state_dict"] if isinstance(value, dict) and set(value) == {"state_dict"} else value


def _pickled(file: File) -> Any:
    """What a bare pickle holds. Programs are refused by name, whatever else is wrong with them."""
    names = inert.names_in(file.content)
    try:
        value = inert.read_pickle(file.content, file.name)
    except InputError:
        if any(name for name in names if not name.startswith(("(", "collections.", "torch.", "numpy."))):
            raise _program(file, names) from None
        raise
    if isinstance(value, Opaque) and "obs_rms" in value.attributes:
        raise InputError(
            f"{printable(file.name)} holds VecNormalize statistics, no policy. Give the policy's zip, and this with --normaliser."
        )
    if inert.opaque_names(value):
        raise _program(file, names)
    return value


def _program(file: File, names: tuple[str, ...]) -> UnsafeError:
    return UnsafeError(
        f"{printable(file.name)} is a pickle that runs code when loaded ({listed(names)}). Refused, nothing was run. Allowed: a plain state dict, safetensors or a Stable-Baselines3 zip."
    )
