"""ONNX by anybody: golden answers of real exporters, ports told apart, hostile models refused, mutations survived."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import onnx
import onnxruntime
import pytest
from hostile_cases import FIXTURES
from onnx import numpy_helper
from onnx_cases import W, external, looping, parsed, written

from limbeck import teachers
from limbeck.contracts import Blueprint, Dense, Normaliser, Spec, View
from limbeck.errors import InputError, UnsafeError
from limbeck.exporters import onnx as exporter
from limbeck.spaces import head_for
from limbeck.teachers import formats
from limbeck.teachers.files import File

CART = Spec(gym.spaces.Box(-5, 5, (4,)), gym.spaces.Discrete(2))
HIDDEN = Spec(gym.spaces.Box(-5, 5, (2,)), gym.spaces.Discrete(2))
PENDULUM = Spec(gym.spaces.Box(-8, 8, (3,)), gym.spaces.Box(-2, 2, (1,)))
OBS = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)


def answers(teacher: teachers.Teacher, obs: object, count: int) -> np.ndarray:
    return teacher.policy(obs, teacher.policy.initial_state(count), np.ones(count, bool)).params


def largest_gap(teacher: teachers.Teacher, golden: dict[str, np.ndarray], key: str) -> float:
    """The largest difference over a whole recorded sequence [T, B, ...]."""
    state, gap = teacher.policy.initial_state(golden["obs"].shape[1]), 0.0
    for obs, first, wanted in zip(golden["obs"], golden["first"], golden[key], strict=True):
        output = teacher.policy(obs, state, first)
        state, gap = output.state, max(gap, float(np.abs(output.params - wanted).max()))
    return gap


# ---------------------------------------------------------------- real files


@pytest.mark.parametrize("name", ["onnx_legacy", "onnx_dynamo", "onnx_batch1", "onnx_batch1_dynamo"])
def test_rows_are_those_of_the_exporter(name):
    teacher, golden = teachers.load(FIXTURES / f"{name}.onnx", CART), np.load(FIXTURES / f"{name}.golden.npz")
    assert teacher.policy.head.kind == "categorical"
    np.testing.assert_allclose(answers(teacher, golden["obs"], 200), golden["logits"], atol=1e-5)


@pytest.mark.parametrize("name", ["onnx_gru", "onnx_gru_legacy"])
def test_memory_goes_round_and_resets(name):
    golden = dict(np.load(FIXTURES / f"{name}.golden.npz"))
    assert largest_gap(teachers.load(FIXTURES / f"{name}.onnx", HIDDEN), golden, "logits") < 1e-5


@pytest.mark.parametrize("name", ["mlp", "gru", "lstm"])
def test_exports_of_rsl_rl_once_their_weights_are_inside(name, tmp_path):
    source = FIXTURES / f"rslrl_export_{name}.onnx"
    with pytest.raises(UnsafeError, match=r"another file.*onnx\.save"):
        teachers.load(source, PENDULUM)
    teacher = teachers.load(written(onnx.load(source), tmp_path / "whole.onnx"), PENDULUM)
    assert largest_gap(teacher, dict(np.load(FIXTURES / f"rslrl_export_{name}.golden.npz")), "mean") < 1e-5


def test_a_recurrent_teacher_forgets_only_where_an_episode_begins():
    policy = teachers.load(FIXTURES / "onnx_gru.onnx", HIDDEN).policy
    obs = np.ones((3, 2), np.float32)
    state = policy(obs, policy.initial_state(3), np.ones(3, bool)).state
    after = policy(obs, state, np.array([True, False, True])).params
    fresh = policy(obs, policy.initial_state(3), np.ones(3, bool)).params
    np.testing.assert_allclose(after[[0, 2]], fresh[[0, 2]], atol=1e-6)
    assert np.abs(after[1] - fresh[1]).max() > 1e-3


def test_inspect_tells_ports_and_size_without_an_environment():
    info = teachers.inspect(FIXTURES / "onnx_gru.onnx")
    assert (info.format, info.algorithm, info.stated["parameters"]) == ("onnx", "pytorch", 306)
    assert info.stated["inputs"] == ["obs [batch, 2]", "h_in [1, batch, 8]"]
    assert "GRU" in info.stated["operators"]


def test_our_own_export_reads_its_metadata(tmp_path):
    rng = np.random.default_rng(1)
    view, norm = View(history=2), Normaliser(np.full(4, 30, np.float32), np.full(4, 2, np.float32))
    layer = Dense(rng.standard_normal((8, 2)).astype(np.float32), np.zeros(2, np.float32), "identity")
    blueprint = Blueprint(CART, head_for(CART.action_space, "q"), (layer,), view, norm, name="student")
    path = tmp_path / "policy.onnx"
    path.write_bytes(exporter.generate(blueprint))
    teacher = teachers.load(path, CART)
    assert (teacher.policy.head.kind, teacher.info.algorithm) == ("q", "student")
    own = teachers.load(blueprint, CART)
    np.testing.assert_allclose(answers(teacher, OBS, 5), answers(own, OBS, 5), atol=1e-4)
    with pytest.raises(InputError, match="wants"):
        teachers.load(path, replace(CART, action_space=gym.spaces.Discrete(3)))


# ---------------------------------------------------------------- ports


def test_the_name_of_an_output_says_what_it_is(tmp_path):
    bodies = {
        "q": "(float[n,4] obs) => (float[n,2] q_values) { q_values = MatMul(obs, w) }",
        "categorical": "(float[n,4] obs) => (float[n,2] probs) { h = MatMul(obs, w) probs = Softmax<axis=1>(h) }",
    }
    for kind, body in bodies.items():
        teacher = teachers.load(written(parsed(f"g {body}", w=W), tmp_path / "m.onnx"), CART)
        assert teacher.policy.head.kind == kind
    rows = answers(teacher, OBS, 5)
    wanted = OBS @ W - np.log(np.exp(OBS @ W).sum(1, keepdims=True))
    np.testing.assert_allclose(rows, wanted, atol=1e-5)


def test_kind_says_what_an_unnamed_output_is(tmp_path):
    path = written(parsed("g (float[n,4] x) => (float[n,2] y) { y = MatMul(x, w) }", w=W), tmp_path / "m.onnx")
    teacher = teachers.load(path, CART)
    assert any("is read as categorical rows" in note for note in teacher.info.notes)
    assert teachers.load(path, CART, kind="q").policy.head.kind == "q"
    with pytest.raises(InputError, match="Allowed: "):
        teachers.load(path, CART, kind="nonsense")


def test_logits_are_preferred_to_actions_and_the_value_is_kept(tmp_path):
    text = """g (float[n,4] obs) => (int64[n] action, float[n,2] logits, float[n,1] value) {
        logits = MatMul(obs, w) action = ArgMax<axis=1, keepdims=0>(logits) value = ReduceMax<axes=[1]>(logits) }"""
    output = teachers.load(written(parsed(text, w=W), tmp_path / "m.onnx"), CART).policy(OBS, {}, np.ones(5, bool))
    np.testing.assert_allclose(output.params, OBS @ W, atol=1e-5)
    np.testing.assert_allclose(output.value, (OBS @ W).max(1), atol=1e-5)


def test_mean_with_a_shared_log_std_is_a_gaussian(tmp_path):
    text = "g (float[n,3] obs) => (float[n,1] mean, float[1] log_std) { mean = MatMul(obs, w) log_std = Identity(s) }"
    model = parsed(text, w=np.ones((3, 1), np.float32), s=np.array([-0.7], np.float32))
    teacher = teachers.load(written(model, tmp_path / "m.onnx"), PENDULUM)
    assert teacher.policy.head.kind == "gaussian"
    rows = answers(teacher, OBS[:, :3], 5)
    np.testing.assert_allclose(rows, np.c_[OBS[:, :3].sum(1), np.full(5, -0.7)], atol=1e-5)


def test_a_fixed_batch_is_filled_up(tmp_path):
    model = parsed("g (float[3,4] obs) => (float[3,2] logits) { logits = MatMul(obs, w) }", w=W)
    teacher = teachers.load(written(model, tmp_path / "m.onnx"), CART)
    np.testing.assert_allclose(answers(teacher, OBS, 5), OBS @ W, atol=1e-5)


def test_pictures_are_turned_to_the_layout_of_the_model(tmp_path):
    space = gym.spaces.Box(0, 255, (5, 6, 3), np.uint8)
    spec = Spec(space, gym.spaces.Discrete(2))
    weight = np.random.default_rng(2).standard_normal((90, 2)).astype(np.float32)
    picture = np.random.default_rng(3).integers(0, 256, (4, 5, 6, 3)).astype(np.uint8)
    flat = picture.transpose(0, 3, 1, 2).reshape(4, -1).astype(np.float32)
    body = "h = Flatten(obs) logits = MatMul(h, w)"
    for kind, shape in (("float", "n,3,5,6"), ("uint8", "n,3,5,6"), ("float", "n,5,6,3")):
        cast = f"f = Cast<to=1>(obs) {body.replace('Flatten(obs)', 'Flatten(f)')}" if kind == "uint8" else body
        model = parsed(f"g ({kind}[{shape}] obs) => (float[n,2] logits) {{ {cast} }}", w=weight)
        teacher = teachers.load(written(model, tmp_path / "m.onnx"), spec)
        rows = flat if shape == "n,3,5,6" else picture.reshape(4, -1).astype(np.float32)
        np.testing.assert_allclose(answers(teacher, picture, 4), rows @ weight, rtol=1e-4, atol=1e-2)
    scaled = teachers.load(tmp_path / "m.onnx", spec, architecture="obs/255")
    np.testing.assert_allclose(answers(scaled, picture, 4), rows / 255 @ weight, rtol=1e-3, atol=1e-3)


def test_the_inputs_of_a_dict_are_found_by_name(tmp_path):
    space = gym.spaces.Dict({"speed": gym.spaces.Box(-1, 1, (1,)), "place": gym.spaces.Box(-1, 1, (3,))})
    spec = Spec(space, gym.spaces.Discrete(2))
    text = "g (float[n,3] place, float[n,1] Speed) => (float[n,2] logits) { x = Concat<axis=1>(place, Speed) logits = MatMul(x, w) }"
    path = written(parsed(text, w=W), tmp_path / "m.onnx")
    teacher = teachers.load(path, spec)
    rows = answers(teacher, {"speed": OBS[:, 3:], "place": OBS[:, :3]}, 5)
    np.testing.assert_allclose(rows, OBS @ W, atol=1e-5)
    other = gym.spaces.Dict({"a": gym.spaces.Box(-1, 1, (1,)), "place": gym.spaces.Box(-1, 1, (3,))})
    with pytest.raises(InputError, match="named like its entries"):
        teachers.load(path, replace(spec, observation_space=other))


def test_the_first_step_is_told_to_models_that_ask(tmp_path):
    text = """g (float[n,4] obs, bool[n] episode_start, float[n,2] hidden) => (float[n,2] logits, float[n,2] hidden_new) {
        f = Cast<to=1>(episode_start) c = Unsqueeze(f, axis) h = MatMul(obs, w) hidden_new = Add(hidden, h) logits = Add(hidden_new, c) }"""
    teacher = teachers.load(written(parsed(text, w=W, axis=np.array([1])), tmp_path / "m.onnx"), CART)
    once = teacher.policy(OBS, teacher.policy.initial_state(5), np.ones(5, bool))
    then = teacher.policy(OBS, once.state, np.zeros(5, bool))
    np.testing.assert_allclose(once.params, OBS @ W + 1, atol=1e-5)
    np.testing.assert_allclose(then.params, 2 * (OBS @ W), atol=1e-5)


def test_a_shape_that_does_not_fit_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="sees 4 numbers, the task gives 2"):
        teachers.load(FIXTURES / "onnx_legacy.onnx", HIDDEN)
    with pytest.raises(InputError, match="no such answer fits"):
        teachers.load(FIXTURES / "onnx_legacy.onnx", replace(CART, action_space=gym.spaces.Discrete(3)))
    with pytest.raises(InputError, match="--env"):
        teachers.load(FIXTURES / "onnx_legacy.onnx")
    with pytest.raises(InputError, match="it runs no code"):
        teachers.load(FIXTURES / "onnx_legacy.onnx", CART, trust="0" * 64)


def test_a_model_that_draws_at_random_is_refused(tmp_path):
    text = "g (float[n,4] obs) => (float[n,2] logits) { h = MatMul(obs, w) r = RandomNormalLike(h) logits = Add(h, r) }"
    with pytest.raises(InputError, match="draws at random"):
        teachers.load(written(parsed(text, w=W), tmp_path / "m.onnx"), CART)


# ---------------------------------------------------------------- attacks


@pytest.mark.parametrize(
    "location", ["../secret.bin", "absolute", "a/../../secret.bin", "link.bin", "hard.bin", "w.bin"]
)
def test_external_data_of_any_kind_is_refused(location, tmp_path, audited):
    folder = tmp_path / "model"
    folder.mkdir()
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.array([77, 78], "<f4").tobytes())
    os.symlink(secret, folder / "link.bin")
    os.link(secret, folder / "hard.bin")
    (folder / "w.bin").write_bytes(secret.read_bytes())
    model = external(str(secret) if location == "absolute" else location)
    path = written(model, folder / "model.onnx")
    with audited() as events, pytest.raises(UnsafeError, match="in another file"):
        teachers.load(path, CART)
    info = teachers.inspect(path)
    assert info.format == "program"
    assert "another file" in info.notes[0] or "another file" in info.notes[-1]
    assert not events, events
    if location == "w.bin":  # positive control: ONNX Runtime given the path reads it
        run = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        assert (run.run(None, {"obs": np.zeros((1, 4), np.float32)})[0] == [77, 78]).all()


def test_an_unknown_key_of_external_data_is_refused(tmp_path):
    with pytest.raises(UnsafeError, match="in another file"):
        teachers.load(written(external("w.bin", __class__="x"), tmp_path / "m.onnx"), CART)


def test_loops_functions_and_foreign_operators_are_refused(tmp_path):
    with pytest.raises(UnsafeError, match="loop or branch"):
        teachers.load(written(looping(2**62), tmp_path / "m.onnx"), CART)
    model = onnx.load(FIXTURES / "onnx_legacy.onnx")
    model.opset_import.add(domain="com.evil", version=1)
    with pytest.raises(UnsafeError, match="outside the ONNX standard"):
        teachers.load(written(model, tmp_path / "m.onnx"), CART)
    model = onnx.load(FIXTURES / "onnx_legacy.onnx")
    model.graph.node[0].domain = "com.evil"
    with pytest.raises(UnsafeError, match=r"domain 'com\.evil'"):
        teachers.load(written(model, tmp_path / "m.onnx"), CART)


@pytest.mark.parametrize("elements", [2**29, 2**34, 2**40, 2**62])
def test_a_huge_tensor_is_refused_before_it_takes_memory(elements, tmp_path):
    text = """g (float[n,4] obs) => (float[n,2] logits) {
        z = ConstantOfShape(s) m = ReduceMax<keepdims=0>(z) h = MatMul(obs, w) logits = Add(h, m) }"""
    path = written(parsed(text, w=W, s=np.array([elements])), tmp_path / "m.onnx")
    with pytest.raises(InputError) as caught:
        teachers.load(path, CART)
    assert "\n" not in str(caught.value)


def test_numbers_that_are_none_and_huge_declarations_are_refused(tmp_path):
    for bad in (np.nan, np.inf):
        weights = W.copy()
        weights[0, 0] = bad
        model = parsed("g (float[n,4] obs) => (float[n,2] logits) { logits = MatMul(obs, w) }", w=weights)
        with pytest.raises(InputError, match="NaN or infinite"):
            teachers.load(written(model, tmp_path / "m.onnx"), CART)
    model = onnx.load(FIXTURES / "onnx_legacy.onnx")
    model.graph.output.add().CopyFrom(onnx.helper.make_tensor_value_info("y", 1, [2**20, 2**20]))
    with pytest.raises(InputError):
        teachers.load(written(model, tmp_path / "m.onnx"), CART)


def test_damage_is_one_clear_line(tmp_path):
    content = (FIXTURES / "onnx_legacy.onnx").read_bytes()
    path = tmp_path / "m.onnx"
    wrong_shape = onnx.load_model_from_string(content)
    wrong_shape.graph.initializer[0].dims[0] = 17
    wrong_type = onnx.load_model_from_string(content)
    wrong_type.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.zeros((16, 4), np.int64), wrong_type.graph.initializer[0].name)
    )
    future = onnx.load_model_from_string(content)
    future.opset_import[0].version = 999
    bad = [content[:n] for n in (3, 40, len(content) // 2, len(content) - 1)] + [b"\x08\x08\x12" + os.urandom(64)]
    bad += [model.SerializeToString() for model in (wrong_shape, wrong_type, future)]
    for damaged in bad:
        path.write_bytes(damaged)
        with pytest.raises(InputError) as caught:
            teachers.load(path, CART)
        assert "\n" not in str(caught.value)


def test_content_decides_and_no_other_format_takes_it():
    for path in [*FIXTURES.glob("*.onnx")]:
        file = File(path, path.read_bytes())
        taken = [n for n in formats.names() if n != "state_dict" and _recognises(n, file)]
        assert taken == ["onnx_model"]
    assert not _recognises("onnx_model", File(Path("x.onnx"), (FIXTURES / "cartpole_ppo_sb3.zip").read_bytes()))


def _recognises(name: str, file: File) -> bool:
    return __import__(f"limbeck.teachers.formats.{name}", fromlist=["x"]).recognises(file)


# ---------------------------------------------------------------- mutations, in a child: a crash is a failure


def survive(seed: int, count: int, *names: str) -> None:
    driver = Path(__file__).with_name("onnx_fuzz_driver.py")
    command = [sys.executable, str(driver), str(seed), str(count), *(str(FIXTURES / name) for name in names)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, (done.returncode, done.stdout[-2000:], done.stderr[-2000:])
    surprises, slowest, peak, written_files = done.stdout.splitlines()[-1].split()
    assert surprises == "0", done.stdout[-2000:]
    assert float(slowest) < 10
    assert int(peak) < 1000
    assert written_files == "0"


def test_mutations_are_survived():
    survive(0, 60, "onnx_legacy.onnx", "onnx_gru.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx_legacy.onnx", "onnx_gru_legacy.onnx", "onnx_gru.onnx", "onnx_batch1.onnx"])
def test_many_mutations_are_survived(name):
    survive(2, 10_000, name)
