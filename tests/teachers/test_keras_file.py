"""Keras models: the same numbers as Keras gives, nothing imported, nothing run, nothing read outside the file.

The quick tests use files that Keras wrote (tests/fixtures) and files written here by hand; those marked slow ask Keras
itself (its import takes eight seconds) for every layer that is read.
"""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from gymnasium import spaces
from hostile_cases import FIXTURES, with_member

from limbeck import distributions, teachers
from limbeck.contracts import Spec, Teacher
from limbeck.errors import InputError, LimbeckError, UnsafeError
from limbeck.teachers import keras_config

VECTOR = spaces.Box(-np.inf, np.inf, (4,), np.float32)
CARTPOLE = Spec(VECTOR, spaces.Discrete(2), "cartpole")
BEACON = Spec(spaces.Box(0, 255, (36, 36, 1), np.uint8), spaces.Discrete(3), "beacon")
GIVEN = {"keras_dense.keras": CARTPOLE, "keras_dense_h5.h5": CARTPOLE, "keras_functional.keras": CARTPOLE, "keras_conv.keras": BEACON}  # fmt: skip


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / f"{name.split('.')[0]}.golden.npz") as file:
        return dict(file)


def answers(teacher: Teacher, obs: Any) -> Any:
    count = len(next(iter(obs.values()))) if isinstance(obs, dict) else len(obs)
    return teacher.policy(obs, teacher.policy.initial_state(count), np.ones(count, bool))


# ---------------------------------------------------------------- files that Keras wrote


@pytest.mark.parametrize("name", list(GIVEN))
def test_logits_and_actions_are_those_of_keras(name: str) -> None:
    teacher, wanted = teachers.load(FIXTURES / name, GIVEN[name]), golden(name)
    said = answers(teacher, wanted["obs"])
    np.testing.assert_allclose(said.params, wanted["logits"], rtol=1e-5, atol=2e-5)
    assert np.array_equal(distributions.act(teacher.policy.head, said.params), wanted["action"])
    assert len(np.unique(wanted["action"])) > 1
    assert teacher.blueprint is not None
    assert teacher.info.format == "keras"
    assert any("--kind q" in note for note in teacher.info.notes)


def test_kind_says_what_a_linear_output_is() -> None:
    teacher = teachers.load(FIXTURES / "keras_dense.keras", CARTPOLE, kind="q")
    assert teacher.policy.head.kind == "q"
    assert not any("--kind" in note for note in teacher.info.notes)


def test_a_picture_may_lie_channels_first_or_come_frame_by_frame() -> None:
    rows, wanted = golden("keras_conv")["obs"], golden("keras_conv")["logits"]
    first = Spec(spaces.Box(0, 255, (1, 36, 36), np.uint8), spaces.Discrete(3))
    flat = Spec(spaces.Box(0, 255, (36, 36), np.uint8), spaces.Discrete(3))
    for spec, obs in ((first, rows.transpose(0, 3, 1, 2)), (flat, rows[..., 0])):
        np.testing.assert_allclose(
            answers(teachers.load(FIXTURES / "keras_conv.keras", spec), obs).params, wanted, atol=2e-5
        )


def test_one_entry_of_a_dict_is_found_by_its_size() -> None:
    spec = Spec(spaces.Dict({"state": VECTOR, "goal": spaces.Box(-1, 1, (2,))}), spaces.Discrete(2))
    teacher, wanted = teachers.load(FIXTURES / "keras_dense.keras", spec), golden("keras_dense")
    obs = {"state": wanted["obs"], "goal": np.zeros((len(wanted["obs"]), 2), np.float32)}
    np.testing.assert_allclose(answers(teacher, obs).params, wanted["logits"], atol=2e-5)


def test_inspect_needs_no_task() -> None:
    info = teachers.inspect(FIXTURES / "keras_functional.keras")
    assert info.algorithm == "Keras Functional"
    assert info.stated["input_shape"] == [4]
    assert info.stated["parameters"] > 100
    assert info.unread == ()


def test_another_task_is_refused_with_both_sizes() -> None:
    with pytest.raises(InputError, match=r"sees 4 numbers, the task gives 3"):
        teachers.load(FIXTURES / "keras_dense.keras", Spec(spaces.Box(-1, 1, (3,)), spaces.Discrete(2)))
    with pytest.raises(InputError, match="gives 2 numbers where 5 are needed"):
        teachers.load(FIXTURES / "keras_dense.keras", Spec(VECTOR, spaces.Discrete(5)))
    with pytest.raises(InputError, match="--architecture was given"):
        teachers.load(FIXTURES / "keras_dense.keras", CARTPOLE, architecture="dense > head q")
    with pytest.raises(InputError, match="Name the environment"):
        teachers.load(FIXTURES / "keras_dense.keras")
    with pytest.raises(InputError, match="Allowed: categorical"):
        teachers.load(FIXTURES / "keras_dense.keras", CARTPOLE, kind="nonsense")


# ---------------------------------------------------------------- files written here


def dense(units: int, name: str = "", **config: Any) -> dict[str, Any]:
    return layer("Dense", name or f"dense_{units}", units=units, activation="linear", use_bias=True, **config)


def layer(kind: str, name: str, **config: Any) -> dict[str, Any]:
    return {"module": "keras.layers", "class_name": kind, "config": {"name": name, **config}, "registered_name": None}


def sequential(*layers: dict[str, Any], shape: tuple[Any, ...] = (4,)) -> dict[str, Any]:
    entry = layer("InputLayer", "input", batch_shape=[None, *shape])
    return {"module": "keras", "class_name": "Sequential", "config": {"name": "s", "layers": [entry, *layers]}}


def h5(datasets: dict[str, np.ndarray], more: Callable[[h5py.File], None] = lambda _: None) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for path, array in datasets.items():
            file[path] = array
        more(file)
    return buffer.getvalue()


KERNEL = np.arange(8, dtype=np.float32).reshape(4, 2) / 8
PLAIN = {"layers/dense/vars/0": KERNEL, "layers/dense/vars/1": np.zeros(2, np.float32)}


def keras_zip(path: Path, config: Any = None, weights: bytes | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.15.1"}')
        text = config if isinstance(config, (str, bytes)) else json.dumps(config or sequential(dense(2)))
        archive.writestr("config.json", text)
        archive.writestr("model.weights.h5", h5(PLAIN) if weights is None else weights)
    return path


def refused(path: Path, error: type[LimbeckError], match: str, spec: Spec = CARTPOLE) -> None:
    """Loading raises one line; inspecting raises it too, or reports a program."""
    with pytest.raises(error, match=match) as caught:
        teachers.load(path, spec)
    assert "\n" not in str(caught.value)
    if error is UnsafeError:
        assert teachers.inspect(path).format == "program"
    else:
        with pytest.raises(error):
            teachers.inspect(path)


def test_the_plain_hand_written_file_loads(tmp_path: Path) -> None:
    """The positive control of all hostile files below: they differ from this one in a single point."""
    teacher = teachers.load(keras_zip(tmp_path / "m.keras"), CARTPOLE)
    obs = np.eye(4, dtype=np.float32)
    assert np.array_equal(answers(teacher, obs).params, KERNEL)


def test_a_softmax_is_read_as_its_logits(tmp_path: Path) -> None:
    soft = layer("Dense", "d", units=2, activation="softmax")
    teacher = teachers.load(keras_zip(tmp_path / "m.keras", sequential(soft)), CARTPOLE)
    assert teacher.policy.head.kind == "categorical"
    assert np.array_equal(answers(teacher, np.eye(4, dtype=np.float32)).params, KERNEL)
    with pytest.raises(InputError, match="ends in a softmax"):
        teachers.load(keras_zip(tmp_path / "n.keras", sequential(soft)), CARTPOLE, kind="q")


def test_continuous_heads(tmp_path: Path) -> None:
    path = keras_zip(tmp_path / "m.keras", sequential(layer("Dense", "d", units=2, activation="tanh")))
    two = Spec(VECTOR, spaces.Box(-3, 3, (2,)))
    one = Spec(VECTOR, spaces.Box(-3, 3, (1,)))
    obs = np.eye(4, dtype=np.float32)
    plain = teachers.load(path, two)
    assert (plain.policy.head.kind, teachers.load(path, one).policy.head.kind) == ("deterministic", "gaussian")
    np.testing.assert_allclose(
        distributions.act(plain.policy.head, answers(plain, obs).params), np.tanh(KERNEL), atol=1e-6
    )
    squashed = teachers.load(path, two, kind="tanh")
    np.testing.assert_allclose(
        distributions.act(squashed.policy.head, answers(squashed, obs).params), 3 * np.tanh(KERNEL), atol=1e-6
    )


def test_scaling_is_folded_and_its_offset_stays_out_of_the_padding(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kernel, bias = rng.standard_normal((3, 3, 2, 2)).astype(np.float32), rng.standard_normal(2).astype(np.float32)
    conv = layer("Conv2D", "c", filters=2, kernel_size=[3, 3], strides=[1, 1], padding="same", activation="linear")
    parts = (layer("Rescaling", "r", scale=0.5, offset=-1.0), conv, layer("Flatten", "f"))
    path = keras_zip(
        tmp_path / "m.keras", sequential(*parts, shape=(3, 3, 2)),
        h5({"layers/conv2d/vars/0": kernel, "layers/conv2d/vars/1": bias}),
    )  # fmt: skip
    obs = rng.random((5, 3, 3, 2)).astype(np.float32)
    teacher = teachers.load(path, Spec(spaces.Box(0, 1, (3, 3, 2)), spaces.Discrete(18)))
    padded = np.pad(obs * 0.5 - 1, ((0, 0), (1, 1), (1, 1), (0, 0)))
    wanted = np.zeros((5, 3, 3, 2))
    for i in range(3):
        for j in range(3):
            wanted[:, i, j] = np.einsum("bxyc,xyco->bo", padded[:, i : i + 3, j : j + 3], kernel) + bias
    np.testing.assert_allclose(answers(teacher, obs).params, wanted.reshape(5, -1), atol=1e-5)


# ---------------------------------------------------------------- hostile configurations

LAMBDA = layer("Lambda", "l", function={"class_name": "__lambda__", "config": {"code": "4wEAAAA="}})
PROGRAMS = {
    "lambda": LAMBDA,
    "saved model": layer("TFSMLayer", "t", filepath="/etc"),
    "function reference": {**dense(2), "module": "os", "class_name": "system"},
    "module": {**dense(2), "module": "evilmod.layers"},
    "registered": {**dense(2), "registered_name": "mine>Dense"},
}


@pytest.mark.parametrize("case", list(PROGRAMS))
def test_layers_that_are_code_are_refused_and_no_module_is_imported(case: str, tmp_path: Path, audited: Any) -> None:
    path = keras_zip(tmp_path / "m.keras", sequential(PROGRAMS[case]))
    (tmp_path / "evilmod.py").write_text(f"open({str(tmp_path / 'MARK')!r}, 'w')")
    teachers.load(keras_zip(tmp_path / "plain.keras"), CARTPOLE)  # whatever is imported lazily is imported now
    sys.path.insert(0, str(tmp_path))
    try:
        with audited() as events:
            refused(path, UnsafeError, "code of its own")
    finally:
        sys.path.remove(str(tmp_path))
    assert not events
    assert not (tmp_path / "MARK").exists()


def test_the_lambda_that_keras_wrote_is_refused(audited: Any) -> None:
    teachers.load(FIXTURES / "keras_dense.keras", CARTPOLE)
    with audited() as events:
        refused(FIXTURES / "keras_lambda.keras", UnsafeError, "Lambda")
    assert not events


def test_nothing_is_imported_run_or_written_when_a_model_loads(audited: Any) -> None:
    for name, spec in GIVEN.items():
        teachers.load(FIXTURES / name, spec)
        with audited() as events:
            teachers.load(FIXTURES / name, spec)
            teachers.inspect(FIXTURES / name)
        assert not events, name
    assert "tensorflow" not in sys.modules


ODD = {
    "unread layer": (sequential(layer("MultiHeadAttention", "m")), "MultiHeadAttention.*not read"),
    "nested": (sequential({**sequential(dense(2)), "config": {"name": "n", "layers": []}}), "Sequential.*not read"),
    "activation": (sequential(layer("Dense", "d", units=2, activation="leaky_relu")), "leaky_relu"),
    "activation of a table": (sequential(layer("Dense", "d", units=2, activation={"class_name": "f"})), "class_name"),
    "leaky": (sequential(dense(2), layer("LeakyReLU", "l", negative_slope=0.3)), "slope of 0.3"),
    "after softmax": (sequential(layer("Dense", "d", units=2, activation="softmax"), layer("ReLU", "r")), "after a softmax"),
    "units": (sequential(dense(2**40)), "units is"),
    "units text": (sequential(layer("Dense", "d", units="2")), "units is"),
    "half": (sequential(dense(2, dtype="mixed_float16")), "float32"),
    "quantised": (sequential(dense(2, quantization_config={})), "quantised"),
    "channels first": (sequential(layer("Conv2D", "c", filters=2, kernel_size=3, data_format="channels_first"), shape=(4, 4, 1)), "channels_last"),
    "conv on a row": (sequential(layer("Conv2D", "c", filters=2, kernel_size=3)), "over \\(4,\\)"),
    "window": (sequential(layer("GRU", "g", units=2), shape=(7, 4)), "windows of 7"),
    "old gru": (sequential(layer("GRU", "g", units=2, reset_after=False, activation="tanh", recurrent_activation="sigmoid"), shape=(None, 4)), "reset_after"),
    "two names": (sequential(dense(2, "a"), dense(2, "a")), "two layers of one name"),
    "slash": (sequential(dense(2, "../../a")), "named"),
    "no layers": (sequential(), "no chain"),
    "open shape": (sequential(dense(2), shape=(None,)), "shape"),
    "huge shape": (sequential(dense(2), shape=(2**30,)), "shape"),
    "negative": (sequential(dense(2), shape=(-4,)), "shape"),
    "no model": ({"class_name": "Sequential"}, "no model"),
    "list": ([1, 2], "no model"),
    "text": ("{", "no JSON"),
    "deep": ("[" * 100_000, "no JSON|no model"),
    "empty": ("", "no JSON"),
    "no list": ({"class_name": "Sequential", "config": {"layers": {}}}, "list of 1 to"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(ODD))
def test_odd_configurations_are_refused_by_name(case: str, tmp_path: Path) -> None:
    config, match = ODD[case]
    spec = Spec(spaces.Box(0, 1, (4, 4, 1)), spaces.Discrete(2)) if case == "channels first" else CARTPOLE
    path = keras_zip(tmp_path / "m.keras", config if config != "" else b" ")
    with pytest.raises(InputError, match=match):
        teachers.load(path, spec)
    with pytest.raises(InputError):
        teachers.inspect(path)


def functional(links: dict[str, tuple[str, list[str]]], output: str, inputs: list[str]) -> dict[str, Any]:
    """A Functional model of vectors: name -> (class, sources)."""
    layers = []
    for name, (kind, sources) in links.items():
        tensors = [{"class_name": "__keras_tensor__", "config": {"keras_history": [s, 0, 0]}} for s in sources]
        config = {"units": 2} if kind == "Dense" else {"batch_shape": [None, 4]} if kind == "InputLayer" else {}
        nodes = [{"args": [tensors if len(tensors) > 1 else tensors[0]], "kwargs": {}}] if sources else []
        layers.append({**layer(kind, name, **config), "inbound_nodes": nodes})
    ends = {"input_layers": [[n, 0, 0] for n in inputs], "output_layers": [[output, 0, 0]]}
    return {"module": "keras", "class_name": "Functional", "config": {"name": "f", "layers": layers, **ends}}


def test_graphs_in_circles_and_graphs_that_explode_are_refused() -> None:
    circle = {"i": ("InputLayer", []), "a": ("Dense", ["b"]), "b": ("Dense", ["a"])}
    with pytest.raises(InputError, match="no way leads"):
        keras_config.parse(json.dumps(functional(circle, "b", ["i"])), "f")
    doubling: dict[str, tuple[str, list[str]]] = {"i": ("InputLayer", [])}
    left = right = "i"
    for k in range(60):  # every sum takes two branches that never meet again
        doubling |= {f"a{k}": ("Dense", [left]), f"b{k}": ("Dense", [right]), f"c{k}": ("Add", [f"a{k}", f"b{k}"]), f"d{k}": ("Add", [f"b{k}", f"a{k}"])}  # fmt: skip
        left, right = f"c{k}", f"d{k}"
    doubling["out"] = ("Add", [left, right])
    began = time.perf_counter()
    with pytest.raises(InputError, match="too often"):
        keras_config.parse(json.dumps(functional(doubling, "out", ["i"])), "f")
    assert time.perf_counter() - began < 2


# ---------------------------------------------------------------- hostile weights


def test_external_storage_is_refused_and_the_secret_stays_out(tmp_path: Path) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.full(8, 7.25, np.float32).tobytes())

    def plant(file: h5py.File) -> None:
        del file["layers/dense/vars/0"]
        file.create_dataset("layers/dense/vars/0", (4, 2), "f4", external=[(str(secret), 0, 32)])

    content = h5(PLAIN, plant)
    with h5py.File(io.BytesIO(content)) as file:  # positive control: h5py itself reads the secret
        assert (file["layers/dense/vars/0"][()] == 7.25).all()
    refused(keras_zip(tmp_path / "m.keras", weights=content), UnsafeError, "another file")


def test_links_out_of_the_file_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = KERNEL

    def replaced(link: Any) -> bytes:
        def plant(file: h5py.File) -> None:
            del file["layers/dense/vars/0"]
            file["layers/dense/vars/0"] = link

        return h5(PLAIN, plant)

    outside = replaced(h5py.ExternalLink(str(tmp_path / "other.h5"), "x"))
    (tmp_path / "control.h5").write_bytes(outside)
    with h5py.File(tmp_path / "control.h5") as file:  # positive control
        assert (file["layers/dense/vars/0"][()] == KERNEL).all()
    refused(keras_zip(tmp_path / "e.keras", weights=outside), UnsafeError, "link to somewhere else")
    refused(keras_zip(tmp_path / "s.keras", weights=replaced(h5py.SoftLink("/layers"))), UnsafeError, "link to")


def test_virtual_data_sets_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = KERNEL

    def plant(file: h5py.File) -> None:
        del file["layers/dense/vars/0"]
        virtual = h5py.VirtualLayout((4, 2), "f4")
        virtual[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (4, 2))
        file.create_virtual_dataset("layers/dense/vars/0", virtual)

    refused(keras_zip(tmp_path / "m.keras", weights=h5(PLAIN, plant)), UnsafeError, "another file")


def test_a_shape_bomb_is_refused_at_once(tmp_path: Path) -> None:
    """One kilobyte that declares 64 MB of numbers, in a layer whose configuration asks for as many."""

    def plant(file: h5py.File) -> None:
        file.create_dataset("layers/dense/vars/0", (4096, 4096), "f4", chunks=(1024, 1024))
        file["layers/dense/vars/1"] = np.zeros(4096, np.float32)

    path = keras_zip(tmp_path / "m.keras", sequential(dense(4096), shape=(4096,)), h5({}, plant))
    huge = Spec(spaces.Box(-1, 1, (4096,)), spaces.Discrete(4096))
    tracemalloc.start()
    began = time.perf_counter()
    refused(path, InputError, "declares 67,108,864 bytes and stores 0", huge)
    assert time.perf_counter() - began < 1
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_other_declarations_that_do_not_fit(tmp_path: Path) -> None:
    def chunked(file: h5py.File) -> None:  # a chunk of 64 MB for eight numbers
        del file["layers/dense/vars/0"]
        file.create_dataset("layers/dense/vars/0", (4, 2), "f4", maxshape=(None, None), chunks=(4096, 4096), compression="gzip")  # fmt: skip
        file["layers/dense/vars/0"][...] = KERNEL

    def filtered(file: h5py.File) -> None:
        del file["layers/dense/vars/0"]
        file.create_dataset("layers/dense/vars/0", data=KERNEL, compression="lzf")

    def typed(file: h5py.File) -> None:
        del file["layers/dense/vars/0"]
        file["layers/dense/vars/0"] = np.full((4, 2), b"text")

    for name, plant, match in (
        ("c", chunked, "declares 32 bytes"), ("f", filtered, "filter"), ("t", typed, "no plain numbers"),
    ):  # fmt: skip
        refused(keras_zip(tmp_path / f"{name}.keras", weights=h5(PLAIN, plant)), InputError, match)
    wrong = {**PLAIN, "layers/dense/vars/0": KERNEL.T}
    refused(keras_zip(tmp_path / "w.keras", weights=h5(wrong)), InputError, r"shape \[2, 4\].*needs \[4, 2\]")
    fewer = {"layers/dense/vars/0": KERNEL}
    refused(keras_zip(tmp_path / "v.keras", weights=h5(fewer)), InputError, "1 variables.*needs 2")
    for value in (np.nan, np.inf):
        bad = {**PLAIN, "layers/dense/vars/1": np.array([0, value], np.float32)}
        refused(keras_zip(tmp_path / "nan.keras", weights=h5(bad)), InputError, "NaN or infinite")
    huge = {**PLAIN, "layers/dense/vars/0": KERNEL.astype(np.float64) * 1e300}
    refused(keras_zip(tmp_path / "h.keras", weights=h5(huge)), InputError, "float32")


def test_gzip_and_double_precision_are_read(tmp_path: Path) -> None:
    def plant(file: h5py.File) -> None:
        del file["layers/dense/vars/0"]
        file.create_dataset("layers/dense/vars/0", data=KERNEL.astype(np.float64), compression="gzip", shuffle=True)

    teacher = teachers.load(keras_zip(tmp_path / "m.keras", weights=h5(PLAIN, plant)), CARTPOLE)
    assert np.array_equal(answers(teacher, np.eye(4, dtype=np.float32)).params, KERNEL)


def test_a_group_that_holds_itself_ends(tmp_path: Path) -> None:
    def plant(file: h5py.File) -> None:
        file["layers/again"] = file["layers"]  # a hard link upwards

    refused(keras_zip(tmp_path / "m.keras", weights=h5(PLAIN, plant)), InputError, "deeper than")


def test_zip_attacks_are_refused(tmp_path: Path) -> None:
    path = keras_zip(tmp_path / "m.keras")
    refused(with_member(path, tmp_path / "t.keras", "../x", b"1"), InputError, "points outside")
    with zipfile.ZipFile(tmp_path / "b.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", b" " * (64 * 2**20))
    refused(tmp_path / "b.keras", InputError, "unpacks")
    blanks = with_member(path, tmp_path / "c.keras", "config.json", b" " * (17 * 2**20))
    refused(blanks, InputError, "unpacks to")


def test_an_h5_of_weights_alone_is_refused_and_truncation_is_named(tmp_path: Path) -> None:
    (tmp_path / "w.h5").write_bytes(h5(PLAIN))
    refused(tmp_path / "w.h5", InputError, "weights without a configuration")
    content = (FIXTURES / "keras_dense_h5.h5").read_bytes()
    for cut in (9, 100, len(content) // 2, len(content) - 1):
        (tmp_path / "t.h5").write_bytes(content[:cut])
        with pytest.raises(InputError, match=r"damaged|needs|missing|Save"):
            teachers.load(tmp_path / "t.h5", CARTPOLE)
    (tmp_path / "x.keras").write_bytes((FIXTURES / "keras_dense.keras").read_bytes()[:-30])
    refused(tmp_path / "x.keras", InputError, "damaged|truncated")


def test_without_h5py_the_line_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r'pip install "limbeck\[keras\]"'):
        teachers.load(FIXTURES / "keras_dense.keras", CARTPOLE)


def test_hostile_names_reach_no_terminal(tmp_path: Path) -> None:
    path = keras_zip(tmp_path / "m.keras", sequential(layer("Dense\x1b[31m", "evil\x1b]0;x\x07")))
    with pytest.raises(LimbeckError) as caught:
        teachers.load(path, CARTPOLE)
    assert "\x1b" not in str(caught.value)


# ---------------------------------------------------------------- fuzz


def mutated(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(changed))
        match rng.randrange(4):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at] = rng.choice((0, 255, 127, 128, rng.randrange(256)))
            case 2:
                changed[at : at + 8] = rng.choice((b"\xff" * 8, b"\x00" * 8, rng.randbytes(8)))
            case 3:
                del changed[at : at + rng.randint(1, 64)]
        changed = changed or bytearray(b"\0")
    return bytes(changed)


FUZZ = """
import io, os, random, resource, sys, time, zipfile
from pathlib import Path
import numpy as np
sys.path.insert(0, {tests!r})
from hostile_cases import FIXTURES, WRITING
from test_keras_file import CARTPOLE, keras_zip, mutated
from limbeck import teachers
from limbeck.errors import LimbeckError
folder, seed, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)
whole = (FIXTURES / "keras_dense_h5.h5").read_bytes()
with zipfile.ZipFile(FIXTURES / "keras_dense.keras") as archive:
    config, weights = archive.read("config.json"), archive.read("model.weights.h5")
teachers.load(FIXTURES / "keras_dense.keras", CARTPOLE)
writes = []
sys.addaudithook(lambda event, args: writes.append(args[0]) if armed and event == "open" and (args[2] or 0) & WRITING else None)
before, refused, slowest, armed = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0, 0.0, False
for i in range(count):
    if i % 4 == 0:
        path = folder / "f.h5"
        path.write_bytes(mutated(rng, whole))
    else:
        path = keras_zip(folder / "f.keras", mutated(rng, config) if i % 4 == 1 else config, weights if i % 4 == 1 else mutated(rng, weights))
    for call in (lambda: teachers.load(path, CARTPOLE), lambda: teachers.inspect(path)):
        armed, began = True, time.perf_counter()
        try:
            call()
        except LimbeckError as error:
            refused += 1
            assert "\\n" not in str(error), error
        armed = False
        slowest = max(slowest, time.perf_counter() - began)
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
assert not writes, writes
assert slowest < 5, slowest
assert grown < 300, grown
print("refused", refused, "slowest", round(slowest, 2), "grown MB", round(grown))
"""


def fuzz(tmp_path: Path, seed: int, count: int) -> int:
    """In a process of its own: what reads HDF5 is a library in C, and a crash there must be seen as one."""
    script = tmp_path / "fuzz.py"
    script.write_text(FUZZ.format(tests=str(Path(__file__).parent)))
    command = [sys.executable, str(script), str(tmp_path), str(seed), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, f"{done.returncode}: {done.stdout[-500:]} {done.stderr[-2000:]}"
    return int(done.stdout.split()[1])


def test_100_mutations_are_loaded_or_refused(tmp_path: Path) -> None:
    assert fuzz(tmp_path, 0, 100) > 20


@pytest.mark.slow
def test_many_mutations_are_loaded_or_refused(tmp_path: Path) -> None:
    assert fuzz(tmp_path, 1, 10_000) > 2000


# ---------------------------------------------------------------- Keras itself

ZOO = """
import json, os, sys
os.environ["KERAS_BACKEND"] = "torch"
import keras, numpy as np
from keras import layers as L
keras.utils.set_random_seed(3)
rng, folder = np.random.default_rng(3), sys.argv[1]

def adapted(shape):
    layer = L.Normalization()
    layer.adapt(rng.normal(3, 2, (200, *shape)).astype("float32"))
    return layer

image, vector = (11, 9, 3), (5,)
def two(parts, shape=image):
    return keras.Sequential([keras.Input(shape), *parts, *([L.Flatten()] if len(shape) > 1 and parts[-1].__class__.__name__ not in FLAT else []), L.Dense(3)])
FLAT = ("GlobalAveragePooling2D", "GlobalMaxPooling2D", "Flatten")
def branches():
    given = keras.Input(vector)
    x = L.Dense(6, "relu")(given)
    y = L.Concatenate()([x, L.Dense(4, "tanh")(x), L.BatchNormalization()(L.Dense(2)(x))])
    return keras.Model(given, L.Dense(3)(L.Add()([L.Dense(5)(y), L.Dense(5, "elu")(y)])))
def two_outputs():
    given = keras.Input(vector)
    x = L.Dense(6, "tanh")(L.Normalization(mean=[1.0] * 5, variance=[4.0] * 5)(given))
    return keras.Model(given, [L.Dense(3, "softmax")(x), L.Dense(1)(x)])
def two_inputs():
    a, b = keras.Input((5,), name="a"), keras.Input((2,), name="b")
    return keras.Model([a, b], L.Dense(3)(L.Concatenate()([L.Dense(4, "relu")(b), a])))
MODELS = {
    "same_odd": lambda: two([L.Conv2D(4, (3, 2), strides=(2, 3), padding="same", activation="tanh"), L.Conv2D(2, 4, padding="same", use_bias=False)]),
    "valid": lambda: two([L.Rescaling(1 / 255, offset=-0.5), L.Conv2D(4, 3, activation="relu"), L.AveragePooling2D(2), L.Conv2D(3, 2, strides=2)]),
    "offset_same": lambda: two([L.Rescaling(1 / 255, offset=-0.5), L.Conv2D(4, 3, padding="same", activation="elu"), L.MaxPooling2D(3, strides=2, padding="same")]),
    "normal_image": lambda: two([adapted(image), L.Conv2D(4, 3, padding="same"), L.BatchNormalization(), L.ReLU(), L.GlobalAveragePooling2D()]),
    "pool_first": lambda: two([L.MaxPooling2D(2), L.BatchNormalization(), L.GlobalMaxPooling2D(), L.Dense(4, "gelu")]),
    "average_same": lambda: two([L.AveragePooling2D(3, strides=2, padding="same")]),
    "dense_image": lambda: two([L.Dense(4, "silu"), L.Activation("softplus")]),
    "normal": lambda: two([adapted(vector), L.Dense(6, "relu"), L.LayerNormalization(), L.LeakyReLU(negative_slope=0.01), L.Dropout(0.3)], vector),
    "affine_chain": lambda: two([L.Rescaling([0.5, 2, 1, 1, 3], offset=1.0), L.BatchNormalization(), L.Activation("sigmoid"), L.BatchNormalization(scale=False), L.ELU(), L.BatchNormalization(center=False)], vector),
    "layer_norm": lambda: two([L.BatchNormalization(), L.LayerNormalization(epsilon=0.1, scale=False), L.Activation("tanh")], vector),
    "conv1d": lambda: two([L.Conv1D(4, 3, padding="causal", activation="relu"), L.Conv1D(3, 2, strides=2, padding="same")], (7, 5)),
    "history": lambda: two([L.Flatten()], (4, 5)),
    "branches": branches, "two_outputs": two_outputs, "two_inputs": two_inputs,
    "gru": lambda: keras.Sequential([keras.Input((None, 5)), L.GRU(6, return_sequences=True), L.GRU(4), L.Dense(3)]),
    "lstm": lambda: keras.Sequential([keras.Input((None, 5)), adapted(vector), L.LSTM(6, return_sequences=True), L.Dense(3)]),
    "gru_bare": lambda: keras.Sequential([keras.Input((None, 5)), L.GRU(6, use_bias=False), L.Dense(3)]),
    "stateful": lambda: keras.Sequential([keras.Input((1, 5), batch_size=1), L.LSTM(6, stateful=True), L.Dense(3)]),
}
for name, make in MODELS.items():
    model = make()
    for layer in model.layers:  # numbers that are no defaults
        layer.set_weights([np.asarray(rng.uniform(0.2, 1.5, w.shape) if "variance" in v.path or "gamma" in v.path else rng.normal(0, 0.5, w.shape), w.dtype)
                           if "normalization" not in v.path or "batch" in v.path or "layer_norm" in v.path else w for v, w in zip(layer.weights, layer.get_weights())])
    shape = tuple(n or 6 for n in model.input_shape[1:]) if not isinstance(model.input_shape, list) else None
    rows = [rng.normal(1, 2, (12, n)).astype("float32") for n in (5, 2)] if shape is None else rng.normal(1, 2, (1 if name == "stateful" else 12, *shape)).astype("float32")
    if shape == image:
        rows = rng.integers(0, 256, (12, *image)).astype("float32")
    said = model(rows, training=False)
    said = [np.asarray(keras.ops.convert_to_numpy(s)) for s in (said if isinstance(said, list) else [said])]
    model.save(f"{folder}/{name}.keras")
    model.save(f"{folder}/{name}.h5")
    extra = {"value": said[1]} if len(said) > 1 else {}
    np.savez(f"{folder}/{name}.npz", out=said[0], **extra, **({"a": rows[0], "b": rows[1]} if shape is None else {"obs": rows}))
"""
SEQUENCES = ("gru", "lstm", "gru_bare", "stateful")


@pytest.mark.slow
def test_every_layer_gives_what_keras_gives(tmp_path: Path) -> None:
    """Both containers; pictures also with channels first, histories also step by step."""
    script = tmp_path / "zoo.py"
    script.write_text(ZOO)
    env = {**os.environ, "KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    names = sorted(path.stem for path in tmp_path.glob("*.npz"))
    assert len(names) == 19
    for name in names:
        with np.load(tmp_path / f"{name}.npz") as file:
            wanted = dict(file)
        for suffix in (".keras", ".h5"):
            check_like_keras(tmp_path / f"{name}{suffix}", name, wanted)


def check_like_keras(path: Path, name: str, wanted: dict[str, np.ndarray]) -> None:
    actions = spaces.Discrete(3)
    if name == "two_inputs":
        space: Any = spaces.Dict({"b": box(2), "a": box(5), "c": box(1)})
        obs: Any = {"a": wanted["a"], "b": wanted["b"], "c": np.zeros((12, 1), np.float32)}
        close(answers(teachers.load(path, Spec(space, actions)), obs).params, wanted["out"], path)
        return
    rows = wanted["obs"]
    if name in SEQUENCES or name in ("history", "conv1d"):
        teacher = teachers.load(path, Spec(box(5), actions))
        state, said = teacher.policy.initial_state(len(rows)), []
        for t in range(rows.shape[1]):
            output = teacher.policy(rows[:, t], state, np.full(len(rows), t == 0))
            state = output.state
            said.append(output.params)
        close(np.stack(said, axis=1) if wanted["out"].ndim == 3 else said[-1], wanted["out"], path)
        if name in SEQUENCES:
            return
    teacher = teachers.load(path, Spec(box(*rows.shape[1:]), actions))
    said = answers(teacher, rows)
    if name == "two_outputs":
        close(said.value, wanted["value"][:, 0], path)
        shifted = np.exp(said.params - said.params.max(axis=1, keepdims=True))
        close(shifted / shifted.sum(axis=1, keepdims=True), wanted["out"], path)
        return
    close(said.params, wanted["out"], path)
    if rows.ndim == 4:
        first = teachers.load(path, Spec(box(rows.shape[3], *rows.shape[1:3]), actions))
        close(answers(first, rows.transpose(0, 3, 1, 2)).params, wanted["out"], path)


def box(*shape: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, shape, np.float32)


def close(ours: Any, theirs: Any, path: Path) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-4, err_msg=path.name)


@pytest.mark.slow
def test_keras_itself_runs_the_lambda(tmp_path: Path) -> None:
    """The positive control of the refusals: on a file like these, Keras without safe mode runs what the file says."""
    script, mark, path = (tmp_path / name for name in ("control.py", "MARK", "m.keras"))
    script.write_text(
        "import os, keras\n"
        f"run = keras.layers.Lambda(lambda x: [open({str(mark)!r}, 'w').close(), x][1], output_shape=(4,))\n"
        f"keras.Sequential([keras.Input((4,)), run, keras.layers.Dense(2)]).save({str(path)!r})\n"
        f"os.path.exists({str(mark)!r}) and os.remove({str(mark)!r})\n"
        f"keras.models.load_model({str(path)!r}, safe_mode=False)(keras.ops.zeros((1, 4)))\n"
    )
    env = {**os.environ, "KERAS_BACKEND": "torch"}
    subprocess.run([sys.executable, str(script)], env=env, check=True, capture_output=True)
    assert mark.exists()
    mark.unlink()
    refused(path, UnsafeError, "Lambda")
    assert not mark.exists()
