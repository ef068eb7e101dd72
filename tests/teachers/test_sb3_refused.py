"""What of a Stable-Baselines3 zip is refused, by name and on one line; and code that hides in one, which never runs."""

from __future__ import annotations

import contextlib
import io
import json
import resource
import zipfile
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hostile_cases import FIXTURES, numpy_rows, serialised, with_member, with_settings, with_weights
from hypothesis import strategies
from sb3_cases import ACTIONS, BOX, LAST, acted, made, reloaded
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.torch_layers import NatureCNN

from limbeck import teachers
from limbeck.contracts import Spec
from limbeck.errors import InputError, LimbeckError, UnsafeError


@pytest.fixture(scope="module")
def sac_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sac") / "sac.zip"
    made(SAC, BOX, ACTIONS, policy_kwargs={"net_arch": [8]}).save(path)
    return path


class NatureCNNOfMine(NatureCNN):
    """The very tensors of NatureCNN, and perhaps another forward pass."""


def test_what_the_file_cannot_say_is_refused_by_name(tmp_path: Path, cartpole_zip: Path) -> None:
    spec = teachers.load(cartpole_zip).policy.spec
    own = made(PPO, LAST, spaces.Discrete(2), "CnnPolicy", policy_kwargs={"features_extractor_class": NatureCNNOfMine})
    with pytest.raises(InputError, match=r"features extractor .*NatureCNNOfMine.* is not read"):
        reloaded(own, tmp_path, LAST, spaces.Discrete(2))
    mish = made(PPO, BOX, spaces.Discrete(2), policy_kwargs={"activation_fn": torch.nn.Mish})
    with pytest.raises(InputError, match=r"activation .*Mish.* Allowed: torch.nn ReLU"):
        reloaded(mish, tmp_path, BOX, spaces.Discrete(2))
    foreign = with_settings(cartpole_zip, tmp_path / "x.zip", policy_class={"__module__": "mine", ":serialized:": ""})
    with pytest.raises(InputError, match="class of module 'mine'"):
        teachers.load(foreign, spec)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda w: {"layer.weight": torch.zeros(2, 2)}, "no known policy"),
        (lambda w: {**w, "mlp_extractor.policy_net.1.weight": torch.ones(64)}, "no plain MLP"),
        (lambda w: {**w, "features_extractor.conv.weight": torch.ones(4)}, "extractor of another kind"),
        (lambda w: {**w, "features_extractor.cnn.0.weight": torch.zeros(1)}, "is no image"),
        (lambda w: {**w, "features_extractor.extractors.eye.cnn.0.weight": torch.zeros(1)}, "sees 'eye'"),
        (lambda w: {**w, "lstm_actor.weight_ih_l0": torch.zeros(8, 4)}, "lstm_actor.weight_hh_l0"),
        (lambda w: {**w, "lstm_actor.weight_ih_l0": torch.zeros(8, 4), "lstm_actor.weight_hh_l0": torch.zeros(8, 4),
                    "lstm_actor.bias_ih_l0": torch.zeros(8), "lstm_actor.bias_hh_l0": torch.zeros(8)}, "no LSTM"),
        (lambda w: {**w, "lstm_actor.weight_ih_l0_reverse": torch.zeros(8, 4)}, "reverse"),
        (lambda w: {**w, "action_net.steps": torch.zeros(1)}, "action_net.steps"),
    ],
)  # fmt: skip
def test_networks_of_another_kind_are_refused(change: Any, what: str, tmp_path: Path, cartpole_zip: Path) -> None:
    spec = teachers.load(cartpole_zip).policy.spec
    with pytest.raises(InputError, match=what) as caught:
        teachers.load(with_weights(cartpole_zip, tmp_path / "x.zip", change), spec)
    assert "\n" not in str(caught.value)


def test_a_critic_that_lacks_a_tensor_is_refused_by_its_name(tmp_path: Path, sac_zip: Path) -> None:
    lost = "critic.qf0.2.weight"
    part = with_weights(sac_zip, tmp_path / "x.zip", lambda w: {k: v for k, v in w.items() if k != lost})
    with pytest.raises(InputError, match=rf"critic's tensor '{lost}' is missing"):
        teachers.load(part, Spec(BOX, ACTIONS))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda w: {**w, "cnn.0.weight": torch.zeros(32, 3, 5, 5)}, "kernels of 8, 4 and 3"),
        (lambda w: {**w, "cnn.0.weight": torch.zeros(32, 4, 8, 8)}, "sees 4 channels"),
        (lambda w: {**w, "cnn.0.bias": torch.zeros(31)}, "kernels of 8, 4 and 3"),
        (lambda w: {**w, "linear.0.weight": torch.zeros(7, 65)}, "another size"),
        (lambda w: {k: v for k, v in w.items() if k != "cnn.4.weight"}, "cnn.4.weight"),
        (lambda w: {k: v for k, v in w.items() if k != "linear.0.bias"}, "linear.0.bias"),
        (lambda w: {**w, "cnn.0.weight": torch.zeros(32, 3, 8, 8, dtype=torch.int8)}, "allowed: 4 axes of floats"),
    ],
)
def test_convolutions_that_do_not_fit_are_refused(change: Any, what: str, tmp_path: Path, image_zip: Path) -> None:
    def inside(weights: dict) -> dict:
        name = "pi_features_extractor."
        mine = change({k[len(name) :]: v for k, v in weights.items() if k.startswith(name)})
        return {
            **{k: v for k, v in weights.items() if not k.startswith(name)},
            **{name + k: v for k, v in mine.items()},
        }

    with pytest.raises(InputError, match=what):
        teachers.load(with_weights(image_zip, tmp_path / "x.zip", inside), Spec(LAST, spaces.Discrete(2)))


@pytest.fixture(scope="module")
def image_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cnn") / "cnn.zip"
    kwargs = {"net_arch": [], "features_extractor_kwargs": {"features_dim": 7}}
    made(PPO, LAST, spaces.Discrete(2), "CnnPolicy", policy_kwargs=kwargs).save(path)
    return path


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_nan_names_the_tensor(number: float, tmp_path: Path, cartpole_zip: Path) -> None:
    def spoil(weights: dict) -> dict:
        weights["action_net.weight"] = weights["action_net.weight"].clone()
        weights["action_net.weight"][0, 3] = number
        return weights

    with pytest.raises(InputError, match=r"'?action_net\.weight'? holds 1 NaN"):
        teachers.load(with_weights(cartpole_zip, tmp_path / "x.zip", spoil))


@pytest.mark.parametrize(
    "change",
    [
        lambda w: {k: v for k, v in w.items() if k != "action_net.bias"},
        lambda w: {**w, "action_net.weight": torch.zeros(3, 64), "action_net.bias": torch.zeros(3)},
        lambda w: {**w, "action_net.weight": torch.zeros(2, 63)},
        lambda w: {**w, "action_net.weight": torch.zeros(2, 64, dtype=torch.long)},
        lambda w: {**w, "log_std": torch.zeros(2)},
        lambda w: {k: v for k, v in w.items() if "policy_net.0" not in k},
    ],
)
def test_weights_that_do_not_fit_are_refused(change: Any, tmp_path: Path, cartpole_zip: Path) -> None:
    with pytest.raises(InputError):
        teachers.load(with_weights(cartpole_zip, tmp_path / "x.zip", change))


def test_other_spaces_are_refused_on_one_line(cartpole_zip: Path, sac_zip: Path) -> None:
    lunar = Spec(spaces.Box(-1, 1, (8,), np.float32), spaces.Discrete(4), "LunarLander-v3")
    with pytest.raises(InputError) as caught:
        teachers.load(cartpole_zip, lunar)
    assert str(caught.value).startswith(
        "the teacher does not fit LunarLander-v3: observations: teacher Box(4,), task Box(8,); actions: teacher Discrete(2), task Discrete(4)."
    )
    wider = Spec(BOX, spaces.Box(ACTIONS.low * 2, ACTIONS.high * 2), "wider")
    with pytest.raises(InputError, match="action bounds: teacher"):
        teachers.load(sac_zip, wider)
    other = Spec(spaces.Box(-9.0, 9.0, (5,), np.float32), ACTIONS, "other")
    assert any("observation bounds differ" in note for note in teachers.load(sac_zip, other).info.notes)


def test_settings_that_are_no_table_are_refused(tmp_path: Path, cartpole_zip: Path) -> None:
    for content in (b"", b"[]", b"{", b"[" * 100_000, b"\xff"):
        with pytest.raises(InputError, match="settings"):
            teachers.load(with_member(cartpole_zip, tmp_path / "x.zip", "data", content))


def test_garbage_in_settings_never_escapes(tmp_path: Path, cartpole_zip: Path) -> None:
    spec = teachers.load(cartpole_zip).policy.spec
    for junk in (
        None,
        3,
        "x",
        [],
        {},
        {":serialized:": 3},
        {":type:": "<class 'Box'>", "_shape": "no"},
        {"_shape": [10**9]},
    ):
        for key in ("observation_space", "action_space", "policy_class", "policy_kwargs"):
            path = with_settings(cartpole_zip, tmp_path / "x.zip", **{key: junk})
            teachers.load(path, spec)
            teachers.inspect(path)


# ---------------------------------------------------------------- canaries


@pytest.mark.parametrize("key", ["lr_schedule", "zz_extra", "policy_class"])
def test_hidden_code_loads_without_running(
    key: str, tmp_path: Path, cartpole_zip: Path, trap: Any, audited: Any
) -> None:
    evil = with_settings(cartpole_zip, tmp_path / "evil.zip", **{key: serialised(trap.blob)})
    with contextlib.suppress(AttributeError, TypeError):  # a policy class that is an open file
        PPO.load(evil, device="cpu")
    assert trap.fired(), "positive control"
    teachers.load(cartpole_zip)
    with audited() as events:
        teacher = teachers.load(evil)
        info = teachers.inspect(evil)
    assert not trap.fired()
    assert not events
    shown = f"data: {key}" + (" (not written by Stable-Baselines3)" if key == "zz_extra" else "")
    assert shown in teacher.info.unread
    assert info.stated["code"][f"data: {key}"] == ("io.open",)
    obs = numpy_rows(50, 4)
    assert np.array_equal(acted(teacher, obs)[1].params, acted(teachers.load(cartpole_zip), obs)[1].params)


def test_evil_weights_are_refused(tmp_path: Path, cartpole_zip: Path, trap: Any, audited: Any) -> None:
    buffer = io.BytesIO()
    torch.save({"a": trap.payload}, buffer)
    evil = with_member(cartpole_zip, tmp_path / "evil.zip", "policy.pth", buffer.getvalue())
    torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert trap.fired(), "positive control"
    teachers.load(cartpole_zip)
    with audited() as events, pytest.raises(UnsafeError, match=r"io\.open"):
        teachers.load(evil)
    assert not trap.fired()
    assert not events
    assert teachers.inspect(evil).stated["code"]["policy.pth/archive/data.pkl"] == ("io.open",)


def test_an_unexpected_member_is_named(tmp_path: Path, cartpole_zip: Path, trap: Any) -> None:
    evil = with_member(cartpole_zip, tmp_path / "evil.zip", "hook.pkl", trap.blob)
    assert "hook.pkl (not written by Stable-Baselines3)" in teachers.load(evil).info.unread
    assert teachers.inspect(evil).stated["code"]["hook.pkl"] == ("io.open",)
    assert not trap.fired()


# ---------------------------------------------------------------- fuzz

SOURCES = ("cartpole_ppo_sb3", "contrib_lstm_hidden_cartpole", "contrib_maskable_ppo", "contrib_qrdqn_cartpole",
           "sb3_ppo_mixed", "sb3_ppo_squashed_pendulum", "sb3_sac_sde_pendulum", "sb3old_ppo_cartpole")  # fmt: skip
JUNK: tuple[Any, ...] = (
    None, True, 0, -1, 2, 10**9, 10**30, 1e308, -0.5, "", "x", "...", "[inf nan]", "[1e99 ... 2]", "[255 ... 255]", [], [10**9], [3, 36, 36],
    ["a"], {}, {"a": 1}, "<class 'gymnasium.spaces.box.Box'>", "<class 'gymnasium.spaces.dict.Dict'>", "uint8", "object", "float16",
    "<class 'gymnasium.spaces.multi_binary.MultiBinary'>", "<class 'gymnasium.spaces.multi_discrete.MultiDiscrete'>",
    "{'a': Box(0, 255, (4000000, 1, 1), uint8), 'b': Discrete(4000000)}", "sb3_contrib.ppo_mask.policies", "\x1b[31m\n",
)  # fmt: skip
SHAPES = ((), (0,), (1,), (2,), (4,), (7,), (1, 1), (2, 4), (64, 4), (4, 64), (3, 1, 8, 8), (32, 3, 8, 8), (1, 1, 1, 1))


def changed_settings(archive: zipfile.ZipFile, rng: np.random.Generator) -> bytes:
    """The settings with one entry, or one part of one, replaced by junk."""
    settings = json.loads(archive.read("data"))
    wanted = [k for k in settings if k in ("observation_space", "action_space", "policy_class", "policy_kwargs")] * 8
    keys = wanted + list(settings)
    key = keys[rng.integers(len(keys))]
    junk = JUNK[rng.integers(len(JUNK))]
    if isinstance(settings[key], dict) and settings[key] and rng.random() < 0.8:
        inside = [
            *settings[key],
            "clip_mean",
            "squash_output",
            "features_extractor_class",
            "normalize_images",
            "use_expln",
        ]
        settings[key][inside[rng.integers(len(inside))]] = junk
    else:
        settings[key] = junk
    return json.dumps(settings).encode()


def changed_weights(archive: zipfile.ZipFile, rng: np.random.Generator) -> bytes:
    """The weights with a tensor gone, renamed, reshaped, retyped or spoilt."""
    weights = torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)
    names = list(weights)
    name, other = (names[i] for i in rng.integers(len(names), size=2))
    match rng.integers(6):
        case 0:
            del weights[name]
        case 1:
            weights[other] = weights.pop(name)
        case 2:
            weights[name] = torch.zeros(SHAPES[rng.integers(len(SHAPES))])
        case 3:
            weights[name] = weights[name].to((torch.int64, torch.float64, torch.bool, torch.bfloat16)[rng.integers(4)])
        case 4:
            weights[name] = weights[name] * float("nan")
        case 5:
            weights[name.replace("0", str(rng.integers(12)))] = weights[name].transpose(0, -1)
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    return buffer.getvalue()


def mutated(source: Path, target: Path, rng: np.random.Generator) -> None:
    kind = rng.integers(4)
    if kind < 2:
        with zipfile.ZipFile(source) as archive:
            name, change = (("data", changed_settings), ("policy.pth", changed_weights))[kind]
            content = change(archive, rng)
        with_member(source, target, name, content)
        return
    if kind == 2:  # inside the weights, the checksums of the outer zip mended
        with zipfile.ZipFile(source) as archive:
            content = archive.read("policy.pth")
    else:
        content = source.read_bytes()
    spoilt = bytearray(content)
    for place in rng.integers(len(spoilt), size=rng.integers(1, 6)):
        spoilt[place] = rng.integers(256)
    spoilt = spoilt[: rng.integers(len(spoilt))] if rng.random() < 0.2 else spoilt
    if kind == 2:
        with_member(source, target, "policy.pth", bytes(spoilt))
    else:
        target.write_bytes(bytes(spoilt))


def survive(seed: int, target: Path) -> bool:
    """Load and inspect one mutation; whether it still loads. Anything but a LimbeckError on one line is a failure."""
    rng = np.random.default_rng(seed)
    source = FIXTURES / f"{SOURCES[rng.integers(len(SOURCES))]}.zip"
    mutated(source, target, rng)
    said: list[str] = []
    for read in (teachers.load, teachers.inspect):
        try:
            read(target)
        except LimbeckError as error:
            said.append(str(error))
    assert not any(mark in line for line in said for mark in "\n\x1b")
    return not said


def test_mutations_end_in_one_line(tmp_path: Path) -> None:
    teachers.load(FIXTURES / "sb3_ppo_mixed.zip")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loaded: list[bool] = []

    @hypothesis.settings(max_examples=100, derandomize=True, deadline=None, database=None)
    @hypothesis.given(strategies.integers(0, 2**32 - 1))
    def mutate(seed: int) -> None:
        loaded.append(survive(seed, tmp_path / "x.zip"))

    mutate()
    assert 0.04 < sum(loaded) / len(loaded) < 0.96, "the mutations break everything or nothing"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024  # KiB
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


@pytest.mark.slow
def test_many_mutations_end_in_one_line(tmp_path: Path) -> None:
    for seed in range(6000):
        survive(seed, tmp_path / "x.zip")
