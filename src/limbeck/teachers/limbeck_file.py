"""Limbeck's own policy files: safetensors whose metadata describes the policy and where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from limbeck import blueprints, spaces, storage
from limbeck.contracts import Array, Blueprint, Spec
from limbeck.errors import InputError, printable
from limbeck.teachers import stated


def looks_like(content: bytes) -> bool:
    """Whether the content begins as safetensors does: a header length that fits, then a JSON table."""
    length = int.from_bytes(content[:8], "little")
    return content[8:9] == b"{" and 2 <= length <= len(content)


def arrays_of(content: bytes, name: str) -> tuple[dict[str, Array], dict[str, str]]:
    """Arrays and metadata of any safetensors file."""
    try:
        return storage.parse_safetensors(np.frombuffer(content, np.uint8), name)
    except RecursionError as error:
        raise _too_deep(name) from error


def policy(
    arrays: Mapping[str, Array], meta: Mapping[str, str], name: str, spec: Spec | None
) -> tuple[Blueprint, dict[str, Any], tuple[str, ...]]:
    """(blueprint on the task's spaces, provenance, notes)."""
    try:
        drawn, provenance = blueprints.from_arrays(arrays, meta, name)
    except RecursionError as error:
        raise _too_deep(name) from error
    if not isinstance(provenance, dict):
        raise InputError(f"{printable(name)}: its provenance is no table. Export the policy again.")
    if spec is None:
        return drawn, provenance, ()
    notes = stated.compare_spaces(drawn.spec, spec)
    head = spaces.head_for(spec.action_space, drawn.head.kind)
    return replace(drawn, spec=spec, head=head), provenance, notes


def _too_deep(name: str) -> InputError:
    return InputError(f"{printable(name)} describes itself in a nest too deep to read. Export the policy again.")
