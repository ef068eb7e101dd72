"""ONNX with int8 matrix products and convolutions, made by ONNX Runtime's static quantisation (QDQ, calibrated).

A first product that reads plain observations stays float32, as everything that is no product does. Lossy: the file acts
a little differently from its policy. How often is stated where it is exported and checked, and a proof of the policy is
not its proof: it earns its own. Calibrated on the golden rows, states of recurrent policies included. For students that
were trained for whole numbers, export `onnx`: their integers are exact in it.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from limbeck import spaces, storage
from limbeck.contracts import (
    Array,
    Artifact,
    Blueprint,
    Conv,
    Dense,
    Floats,
    Gru,
    Gsde,
    Lstm,
    Policy,
    Quantise,
)
from limbeck.errors import InputError, missing_library, printable
from limbeck.exporters import onnx
from limbeck.exporters.contract import Contract, check_exportable
from limbeck.exporters.onnxcode.layers import inner
from limbeck.exporters.replaying import Golden
from limbeck.runtimes import onnx_session

QUANTISED = ("Gemm", "Conv")  # the normaliser, activations, gates and the action stay float32


def export(blueprint: Blueprint, folder: Path) -> Artifact:
    """Refused: without visited states nothing says how large the numbers inside become."""
    raise InputError(
        f"onnx_int8 of {printable(blueprint.name)!r} was asked for without states to calibrate on. Use exporters.export with golden rows."
    )


def export_from(blueprint: Blueprint, folder: Path, golden: Golden) -> Artifact:
    """Write policy.onnx, calibrated on the golden rows."""
    check_exportable(blueprint)
    exact = onnx.generate(blueprint)
    content = _quantised(exact, _feeds(blueprint, exact, golden))
    storage.write_bytes(folder / "policy.onnx", content)
    return Artifact("onnx_int8", folder, ("policy.onnx",), len(content), compiled=True)


def load(folder: Path, contract: Contract) -> Policy:
    """Check and play the ONNX file of an artefact."""
    return onnx.load(folder, contract)


def missing() -> str:
    return onnx.missing()


def unfit(blueprint: Blueprint) -> str:
    if any(isinstance(layer, Quantise) for layer in inner(blueprint.layers)):
        return "it computes in whole numbers already; export onnx, which is exact"
    product = any(isinstance(layer, (Dense, Conv, Gru, Lstm, Gsde)) for layer in inner(blueprint.layers))
    return "" if product else "it has no matrix products or convolutions; export onnx"


def _feeds(blueprint: Blueprint, exact: bytes, golden: Golden) -> list[dict[str, Array]]:
    """What the graph is fed on the golden rows, one by one with its memory."""
    run = onnx_session.session(exact, "policy.onnx")
    policy = onnx_session.OnnxPolicy(run, blueprint.spec, blueprint.head, blueprint.view)
    rows: Floats = spaces.input_rows(golden.obs, blueprint.spec.observation_space, blueprint.view)
    state, feeds = policy.initial_state(1), []
    for i in range(golden.rows):
        row, first = rows[i : i + 1], np.array(golden.first[i : i + 1])
        feeds.append({"obs": row, **({"first": first} if state else {}), **state})
        state = policy.on_flat(row, state, first).state
    return feeds


def _quantised(exact: bytes, feeds: list[dict[str, Array]]) -> bytes:
    """The graph with quantised products."""
    try:
        import onnx as library
        from onnxruntime import quantization
    except ImportError as error:
        raise missing_library("onnxruntime", "onnx", "exporting int8 ONNX") from error
    model = library.load_model_from_string(exact)

    products = [node for node in model.graph.node if node.op_type in QUANTISED]
    first = products[0]
    first.name = "first"
    # Its inputs are observations, whose numbers differ in size, and one scale for all of them would lose the small ones
    # (1 % in place of 6 % of the bundled LunarLander teacher's actions). Pictures are bytes anyway.
    spared = ["first"] if len(products) > 1 and first.op_type == "Gemm" else []

    class Rows(quantization.CalibrationDataReader):  # type: ignore[misc]  # the library has no types
        def __init__(self) -> None:
            self._rows = iter(feeds)

        def get_next(self) -> Any:
            return next(self._rows, None)

    with tempfile.TemporaryDirectory(prefix="limbeck-") as place, _quiet():
        path = Path(place) / "policy.onnx"
        quantization.quantize_static(
            model, str(path), Rows(), quant_format=quantization.QuantFormat.QDQ, op_types_to_quantize=list(QUANTISED), nodes_to_exclude=spared,
            activation_type=quantization.QuantType.QInt8, weight_type=quantization.QuantType.QInt8, per_channel=True,
        )  # fmt: skip
        return path.read_bytes()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's advice about pre-processing, which does nothing for these graphs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
