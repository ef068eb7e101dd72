"""Limbeck's own policy files, students included: safetensors whose metadata describes the policy and its origin."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from limbeck import blueprints, spaces
from limbeck.contracts import Blueprint, Spec, Teacher, TeacherInfo
from limbeck.errors import InputError, printable
from limbeck.teachers import safetensors_file, seeing
from limbeck.teachers.files import File, Given, info, rebuilt, shape_facts

SUFFIXES = (".safetensors",)


def recognises(file: File) -> bool:
    return safetensors_file.looks_like(file.content) and "limbeck" in safetensors_file.read(file)[1]


def load(file: File, given: Given) -> Teacher:
    given.refuse(file, "normaliser", "kind", "architecture", "trust")
    drawn, provenance = _read(file)
    notes: tuple[str, ...] = ()
    if given.spec is not None:
        drawn, notes = _on(drawn, given.spec, given)
    return rebuilt(drawn, info(file, "limbeck", str(provenance.get("algorithm", "unknown")), provenance, (), notes))


def inspect(file: File) -> TeacherInfo:
    drawn, provenance = _read(file)
    return info(file, "limbeck", str(provenance.get("algorithm", "unknown")), {**shape_facts(drawn), **provenance})


def spec_of(file: File) -> Spec:
    """The spaces that the policy was made for."""
    return _read(file)[0].spec


def _on(drawn: Blueprint, spec: Spec, given: Given) -> tuple[Blueprint, tuple[str, ...]]:
    """The policy on the task's spaces."""
    view, notes = seeing.view_on(drawn.spec, drawn.view, spec, given.view)
    head = spaces.head_for(spec.action_space, drawn.head.kind)
    return replace(drawn, spec=spec, head=head, view=view), notes


def _read(file: File) -> tuple[Blueprint, dict[str, Any]]:
    arrays, meta = safetensors_file.read(file)
    try:
        drawn, provenance = blueprints.from_arrays(arrays, meta, file.name)
    except RecursionError as error:
        raise safetensors_file.too_deep(file) from error
    if not isinstance(provenance, dict):
        raise InputError(f"{printable(file.name)}: its provenance is no table. Export the policy again.")
    return drawn, provenance
