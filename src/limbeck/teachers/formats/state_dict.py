"""Weights without a program: torch state dicts (zip or bare pickle) and safetensors.

Their names decide what they are: a Stable-Baselines3 policy saved by itself, or another known layout.
"""

from __future__ import annotations

from collections.abc import Mapping

from limbeck.contracts import Array, Teacher, TeacherInfo
from limbeck.errors import InputError, UnsafeError, printable
from limbeck.teachers import inert, networks, safetensors_file, sb3
from limbeck.teachers.archive import listed
from limbeck.teachers.files import File, Given
from limbeck.teachers.formats import sb3_zip
from limbeck.teachers.plaindata import Opaque

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".safetensors")


def recognises(file: File) -> bool:
    if file.archive is not None:
        return not sb3.is_sb3(file.archive)
    if safetensors_file.looks_like(file.content):
        return "limbeck" not in safetensors_file.read(file)[1]
    return file.content[:1] == b"\x80" or file.content[-1:] == b"."


def load(file: File, given: Given) -> Teacher:
    given.refuse(file, "kind", "trust")
    return sb3_zip.with_statistics(_bare(_weights(file), file.name), file, given, "torch")


def inspect(file: File) -> TeacherInfo:
    return sb3_zip.about(_bare(_weights(file), file.name), file, "torch")


def _weights(file: File) -> Mapping[str, Array]:
    """The arrays, by name. Raises UnsafeError for pickles that are more than plain data."""
    if file.archive is not None:
        return inert.tensors(inert.read_torch_zip(file.content, file.name), file.name)
    if safetensors_file.looks_like(file.content):
        return safetensors_file.read(file)[0]
    return _pickled(file)


def _pickled(file: File) -> dict[str, Array]:
    """The state dict in a bare pickle. Programs are refused by name, whatever else is wrong with them."""
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
    return inert.tensors(value, file.name)


def _program(file: File, names: tuple[str, ...]) -> UnsafeError:
    return UnsafeError(
        f"{printable(file.name)} is a pickle that runs code when loaded ({listed(names)}). Refused, nothing was run. Allowed: a plain state dict, safetensors or a Stable-Baselines3 zip."
    )


def _bare(weights: Mapping[str, Array], name: str) -> sb3.Saved:
    """Weights alone: their names must be those of a known policy, for nothing else says what to compute."""
    if not any(family.marker in weights for family in networks.FAMILIES.values()):
        raise InputError(
            f"{printable(name)} holds tensors ({listed(tuple(weights), 4)}) but not how to compute with them. Build the torch.nn.Module in Python, load them, and pass the module."
        )
    return sb3.from_weights(weights, name)
