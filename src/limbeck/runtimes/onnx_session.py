"""Play an ONNX policy: the file is checked first, its bytes go to ONNX Runtime, one thread.

Refused before anything runs: external data (paths out of the file), operators outside the ONNX standard, functions and
sub-graphs (loops have no bound).
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck import spaces
from limbeck.contracts import Array, Head, Observation, PolicyOutput, Spec, State, View
from limbeck.errors import InputError, UnsafeError, missing_library, printable

MAX_BYTES = 2**31 - 1  # protobuf's own limit
ARENA = 2 * 2**30  # bytes that the tensors of all models of unknown origin may take together


def load(path: Path, spec: Spec, head: Head, view: View = View()) -> OnnxPolicy:
    """A checked model, ready to play; of the view, keys and mask are applied here."""
    content = checked_bytes(path)
    return OnnxPolicy(session(content, path.name), spec, head, view)


def checked_bytes(path: Path) -> bytes:
    """The file's content once it is known to be a whole, self-contained model of standard operators."""
    content = _read(path)
    checked(content, path)
    return content


def checked(content: bytes, path: Path | str) -> Any:
    """The onnx.ModelProto of content that is a whole, self-contained model of standard operators; `path` names it."""
    try:
        import onnx
    except ImportError as error:
        raise missing_library("onnx", "onnx", "checking an ONNX file") from error
    try:
        model = onnx.load_model_from_string(content)
        _refuse_outside(model, path, onnx.TensorProto.EXTERNAL)
        onnx.checker.check_model(model, full_check=True)
    except (InputError, UnsafeError):
        raise
    except Exception as error:  # protobuf, the checker and shape inference each raise their own kinds
        raise InputError(
            f"{printable(path)} is not a valid ONNX file: {printable(_line(error))}. Export it again."
        ) from error
    return model


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if not 0 < size <= MAX_BYTES:
            raise InputError(f"{printable(path)} holds {size:,} bytes. Allowed: 1 to {MAX_BYTES:,}. Export it again.")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{printable(path)} cannot be read: {error.strerror}. Export the policy again.") from error


def _refuse_outside(model: Any, path: Path | str, external: int) -> None:
    if len(model.functions) or any(i.domain not in ("", "ai.onnx") for i in model.opset_import):
        raise UnsafeError(
            f"{printable(path)} defines or imports operators outside the ONNX standard. Allowed: standard ones."
        )
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise UnsafeError(
                f"{printable(path)} uses an operator of domain {printable(node.domain)!r}. Allowed: standard ones."
            )
        if any(a.HasField("g") or len(a.graphs) for a in node.attribute):
            raise UnsafeError(
                f"{printable(path)} holds a loop or branch ({printable(node.op_type)}). Allowed: straight graphs."
            )
    for tensor in _tensors(model.graph):
        if tensor.data_location == external or len(tensor.external_data):
            raise UnsafeError(
                f"{printable(path)} keeps {printable(tensor.name)!r} in another file. Allowed: one file with its weights inside; "
                "onnx.save(onnx.load('model.onnx'), 'whole.onnx') writes one."
            )


def _tensors(graph: Any) -> Iterable[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)


def session(content: bytes, name: str) -> Any:
    """An ONNX Runtime session over bytes, on one thread of the CPU."""
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_library("onnxruntime", "onnx", "playing an ONNX file") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a different class per cause
        raise InputError(
            f"ONNX Runtime refused {printable(name)}: {printable(_line(error))}. Export it again."
        ) from error


@functools.cache
def _register_arena() -> None:
    """One arena of at most ARENA bytes for all limited sessions of this process (ONNX Runtime allows it once)."""
    import onnxruntime

    kind, place = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, onnxruntime.OrtMemType.DEFAULT
    limits = onnxruntime.OrtArenaCfg({"max_mem": ARENA, "arena_extend_strategy": 1})
    onnxruntime.create_and_register_allocator(onnxruntime.OrtMemoryInfo("Cpu", kind, 0, place), limits)


def limited_session(content: bytes, name: str) -> Any:
    """A session for a model of unknown origin: its tensors share ARENA bytes, and nothing is computed while it is built."""
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_library("onnxruntime", "onnx", "playing an ONNX file") from error
    _register_arena()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # its errors are raised and told in one line
    options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        return onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
        )
    except Exception as error:  # ONNX Runtime raises a different class per cause
        raise InputError(
            f"ONNX Runtime refused {printable(name)}: {printable(_line(error))}. Export it again."
        ) from error


def run_within(run: Any, feeds: dict[str, Array], name: str, seconds: float | None = None) -> list[Array]:
    """All outputs of a session. Raises InputError for what ONNX Runtime refuses, and beyond `seconds`."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    timer = threading.Timer(seconds or 0, lambda: setattr(options, "terminate", True)) if seconds is not None else None
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        return list(run.run(None, feeds, options))
    except Exception as error:  # ONNX Runtime raises a different class per cause
        late = f" (it was ended after {seconds:g} s)" if options.terminate else ""
        raise InputError(
            f"{printable(name)} cannot be computed: {printable(_line(error))}{late}. Give a model of ordinary size that takes the task's observations."
        ) from error
    finally:
        if timer is not None:
            timer.cancel()


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class OnnxPolicy:
    """An ONNX session that plays. `action` of its output is the executed action of the graph itself."""

    def __init__(self, run: Any, spec: Spec, head: Head, view: View = View()) -> None:
        self.spec, self.head = spec, head
        self._run, self._view = run, view
        self._inputs = {i.name: i.shape for i in run.get_inputs()}
        self._outputs = [o.name for o in run.get_outputs()]
        self._memory = [name for name in self._inputs if name.startswith("state_")]
        wanted = spaces.input_size(spec.observation_space, view)
        if self._inputs.get("obs", [None])[-1] != wanted or not {"action", "params"} <= set(self._outputs):
            raise InputError(
                f"the model takes {printable(self._inputs)} and gives {printable(self._outputs)}. Allowed: obs of {wanted} "
                "numbers in, action and params out. Export the policy again."
            )

    def initial_state(self, batch: int) -> State:
        return {name: np.zeros((batch, self._inputs[name][1]), np.float32) for name in self._memory}

    def __call__(self, obs: Observation, state: State, first: NDArray[np.bool_]) -> PolicyOutput:
        return self.on_flat(spaces.input_rows(obs, self.spec.observation_space, self._view), state, first)

    def on_flat(self, flat: Array, state: State, first: NDArray[np.bool_]) -> PolicyOutput:
        """The same from float32 rows [B, I] as `spaces.input_rows` makes them: flat observation, then action mask."""
        feeds: dict[str, Array] = {"obs": flat, **state}
        if "first" in self._inputs:
            feeds["first"] = first
        given = dict(zip(self._outputs, self._run.run(None, feeds), strict=True))
        action = given["action"].reshape(len(flat), *self.head.shape)
        after = {name: given[f"{name}_next"] for name in self._memory}
        return PolicyOutput(given["params"], after, action=action)
