"""safetensors: the file of `numpy` under the name of its format, for programs that read the arrays themselves.

Arrays are named `layers.0.weight`, `normaliser.mean` and so on; the metadata's `limbeck` describes the policy as JSON.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from limbeck.contracts import Artifact, Blueprint, Policy
from limbeck.exporters import numpy
from limbeck.exporters.contract import Contract


def export(blueprint: Blueprint, folder: Path) -> Artifact:
    """Write policy.safetensors."""
    return replace(numpy.export(blueprint, folder), target="safetensors")


def load(folder: Path, contract: Contract) -> Policy:
    """Play the stored weights."""
    return numpy.load(folder, contract)


def missing() -> str:
    return ""
