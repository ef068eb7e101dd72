"""numpy: the weights as safetensors with the whole policy described in the metadata; the reference artefact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from limbeck import blueprints
from limbeck.contracts import Artifact, Blueprint, Policy
from limbeck.exporters.contract import Contract, check_exportable
from limbeck.runtimes.numpy import NumpyPolicy

FILE = "policy.safetensors"


def export(blueprint: Blueprint, folder: Path) -> Artifact:
    """Write the deployed policy; a critic stays behind."""
    check_exportable(blueprint)
    blueprints.save(replace(blueprint, value_layers=()), folder / FILE)
    return Artifact("numpy", folder, (FILE,), (folder / FILE).stat().st_size, compiled=True)


def load(folder: Path, contract: Contract) -> Policy:
    """Play the stored weights."""
    blueprint, _ = blueprints.load(folder / FILE)
    return NumpyPolicy(blueprint)


def missing() -> str:
    return ""
