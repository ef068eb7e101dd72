"""ONNX for Unity: the graph of `onnx` in the nodes of opset 15, which Unity's inference engine reads (7 to 15).

Its tensors have four dimensions or fewer and hold float32, int64 or booleans. Students in whole numbers are refused:
their requantisation is exact in float64 only, which that engine does not have.
"""

from __future__ import annotations

from pathlib import Path

from limbeck import storage
from limbeck.contracts import Artifact, Blueprint, Policy, Quantise
from limbeck.exporters import onnx
from limbeck.exporters.contract import Contract, check_exportable
from limbeck.exporters.onnxcode.layers import inner

OPSET = 15


def export(blueprint: Blueprint, folder: Path) -> Artifact:
    """Write policy.onnx."""
    check_exportable(blueprint)
    content = onnx.generate(blueprint, OPSET)
    storage.write_bytes(folder / "policy.onnx", content)
    return Artifact("onnx15", folder, ("policy.onnx",), len(content), compiled=True)


def load(folder: Path, contract: Contract) -> Policy:
    """Check and play the ONNX file of an artefact."""
    return onnx.load(folder, contract)


def missing() -> str:
    return onnx.missing()


def unfit(blueprint: Blueprint) -> str:
    whole = any(isinstance(layer, Quantise) for layer in inner(blueprint.layers))
    return "its whole numbers need float64 on the way; export onnx, or the student before it was quantised" * whole
