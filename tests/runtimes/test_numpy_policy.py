"""The reference runtime against torch's own layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases_export import observations
from cases_layers import LAYER_CASES, conv, drawn, gru, lstm, norm, policy
from gymnasium import spaces as S

from limbeck.contracts import Conv, Gsde, Parallel, Pool, Shared, View
from limbeck.distributions import FORBIDDEN
from limbeck.runtimes.numpy import ACTIVATE, NumpyPolicy, apply, gru_step, lstm_step

TORCH = {
    "identity": torch.nn.Identity(), "relu": torch.nn.ReLU(), "tanh": torch.nn.Tanh(), "sigmoid": torch.nn.Sigmoid(),
    "elu": torch.nn.ELU(), "leaky_relu": torch.nn.LeakyReLU(), "gelu": torch.nn.GELU(), "silu": torch.nn.SiLU(),
    "hardtanh": torch.nn.Hardtanh(), "softplus": torch.nn.Softplus(),
}  # fmt: skip


def rows(count: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).normal(size=(count, size)).astype(np.float32)


def close(mine: np.ndarray, theirs: torch.Tensor) -> None:
    np.testing.assert_allclose(mine, theirs.detach().numpy(), rtol=1e-5, atol=1e-5)


def pictures(x: np.ndarray, height: int, width: int, channels: int, layout: str = "hwc") -> torch.Tensor:
    """Flat rows as torch wants them: [B, C, H, W]."""
    if layout == "chw":
        return torch.from_numpy(x.reshape(-1, channels, height, width))
    return torch.from_numpy(x.reshape(-1, height, width, channels)).permute(0, 3, 1, 2)


def flat(y: torch.Tensor) -> torch.Tensor:
    return y.permute(0, 2, 3, 1).flatten(1)


@pytest.mark.parametrize("name", ACTIVATE)
def test_activations(name: str) -> None:
    x = np.concatenate([rows(4, 50) * 3, [[-100.0, -30, -0.0, 0, 30, 100] + [1.0] * 44]]).astype(np.float32)
    with np.errstate(all="raise", under="ignore"):
        mine = ACTIVATE[name](x)
    assert mine.dtype == np.float32
    close(mine, TORCH[name](torch.from_numpy(x)))


@pytest.mark.parametrize("layout", ["hwc", "chw"])
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (1, 1, 2, 2), (0, 2, 1, 0)])
def test_convolution(layout: str, stride: tuple[int, int], padding: tuple[int, int, int, int]) -> None:
    layer = conv((9, 11), (3, 4, 5, 6), stride=stride, padding=padding, layout=layout)
    x = rows(3, layer.inputs)
    top, bottom, left, right = padding
    image = torch.nn.functional.pad(pictures(x, 9, 11, 5, layout), (left, right, top, bottom))
    weight = torch.from_numpy(layer.weight).permute(3, 2, 0, 1)
    wanted = torch.relu(torch.nn.functional.conv2d(image, weight, torch.from_numpy(layer.bias), stride))
    mine = apply(layer, x)
    assert mine.shape == (3, layer.outputs)
    assert mine.dtype == np.float32
    close(mine, flat(wanted))


def test_convolution_over_a_history_is_torchs_conv1d() -> None:
    layer = conv((7, 1), (3, 1, 4, 6), "identity", stride=(2, 1))
    x = rows(5, 28)
    weight = torch.from_numpy(layer.weight[:, 0]).permute(2, 1, 0)
    wanted = torch.nn.functional.conv1d(
        torch.from_numpy(x.reshape(5, 7, 4)).permute(0, 2, 1), weight, torch.from_numpy(layer.bias), 2
    )
    close(apply(layer, x), wanted.permute(0, 2, 1).flatten(1))


@pytest.mark.parametrize("method", ["max", "mean"])
@pytest.mark.parametrize(
    ("window", "stride", "padding"),
    [((2, 2), (2, 2), 0), ((3, 3), (2, 2), 1), ((3, 2), (1, 3), 1), ((5, 5), (5, 5), 2)],
)
def test_pooling(method: str, window: tuple[int, int], stride: tuple[int, int], padding: int) -> None:
    layer = Pool((8, 9), 3, window, stride, method, (padding,) * 4)
    x = rows(4, layer.inputs)
    pool = (
        torch.nn.MaxPool2d(window, stride, padding)
        if method == "max"
        else torch.nn.AvgPool2d(window, stride, padding, count_include_pad=False)
    )
    close(apply(layer, x), flat(pool(pictures(x, 8, 9, 3))))


def test_pooling_places_that_see_only_padding_are_refused() -> None:
    assert "fills whole windows" in Pool((4, 4), 1, (2, 2), (1, 1), "max", (2, 0, 0, 0)).problem()
    assert Pool((4, 4), 1, (2, 2), (1, 1), "max", (1, 1, 1, 1)).problem() == ""


def test_layer_normalisation() -> None:
    layer, x = norm(40, "tanh"), rows(6, 40) * 5 + 3
    wanted = torch.nn.functional.layer_norm(
        torch.from_numpy(x), (40,), torch.from_numpy(layer.weight), torch.from_numpy(layer.bias), layer.epsilon
    )
    close(apply(layer, x), torch.tanh(wanted))


def test_gru_and_lstm_step_like_torchs() -> None:
    ours, theirs = gru(5, 7), torch.nn.GRUCell(5, 7)
    for name, value in (("ih", ours.weight_x), ("hh", ours.weight_h)):
        getattr(theirs, f"weight_{name}").data = torch.from_numpy(value.T.copy())
    theirs.bias_ih.data, theirs.bias_hh.data = torch.from_numpy(ours.bias_x), torch.from_numpy(ours.bias_h)
    long, torchs = lstm(5, 7), torch.nn.LSTMCell(5, 7)
    torchs.weight_ih.data, torchs.weight_hh.data = (
        torch.from_numpy(w.T.copy()) for w in (long.weight_x, long.weight_h)
    )
    torchs.bias_ih.data, torchs.bias_hh.data = torch.from_numpy(long.bias / 2), torch.from_numpy(long.bias / 2)
    hidden = h = c = np.zeros((3, 7), np.float32)
    wanted, wanted_h, wanted_c = (torch.zeros(3, 7) for _ in range(3))
    for step in range(6):
        x = rows(3, 5, step)
        hidden, wanted = gru_step(ours, x, hidden), theirs(torch.from_numpy(x), wanted)
        h, c = lstm_step(long, x, h, c)
        wanted_h, wanted_c = torchs(torch.from_numpy(x), (wanted_h, wanted_c))
    close(hidden, wanted)
    close(h, wanted_h)
    close(c, wanted_c)


def test_exploration_is_the_closed_form() -> None:
    layer = Gsde(rows(4, 2), rows(1, 2)[0], np.exp(rows(4, 2, 1)), 0.5, 1e-6)
    x = rows(9, 4, 2)
    mean = np.clip(x.astype(np.float64) @ layer.weight + layer.bias, -0.5, 0.5)
    noise = np.random.default_rng(0).normal(size=(200_000, 4, 2)) * layer.spread  # what it stands for
    drawn_std = np.einsum("i,kij->kj", x[0].astype(np.float64), noise).std(axis=0)
    out = apply(layer, x)
    np.testing.assert_allclose(out[:, :2], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.exp(out[0, 2:]), drawn_std, rtol=0.02)


def test_branches_and_agents_are_their_parts_side_by_side() -> None:
    one, two = drawn(3, 4), drawn(2, 3)
    x = rows(5, 6)
    both = apply(Parallel(((one,), (), (two,)), ((0, 3), (2, 4), (4, 6)), 6), x)
    assert np.array_equal(both, np.concatenate([apply(one, x[:, :3]), x[:, 2:4], apply(two, x[:, 4:])], axis=1))
    many = apply(Shared((two, drawn(3, 1)), 3), x)
    assert many.shape == (5, 3)
    alone = apply(Shared((two,), 3), x)
    np.testing.assert_allclose(
        alone, np.concatenate([apply(two, x[:, i : i + 2]) for i in (0, 2, 4)], axis=1), rtol=1e-6
    )


@pytest.mark.parametrize("padding", ["first", "zero"])
def test_histories_begin_as_they_say(padding: str) -> None:
    said = policy(S.Box(-9, 9, (2,), np.float32), drawn(6, 6, "identity"), view=View(history=3, padding=padding))
    eye = replace(said.layers[0], weight=np.eye(6, dtype=np.float32), bias=np.zeros(6, np.float32))
    player = NumpyPolicy(replace(said, layers=(eye,)))
    x, state = np.arange(1, 9, dtype=np.float32).reshape(4, 1, 2), player.initial_state(1)
    seen = []
    for row, first in zip(x, (True, False, False, True), strict=True):
        output = player(row, state, np.array([first]))
        state = output.state
        seen.append(output.params[0].tolist())
    start, again = ([1, 2], [7, 8]) if padding == "first" else ([0, 0], [0, 0])
    assert seen == [[*start, *start, 1, 2], [*start, 1, 2, 3, 4], [1, 2, 3, 4, 5, 6], [*again, *again, 7, 8]]


def test_forbidden_actions_are_never_chosen() -> None:
    masked = LAYER_CASES["masked"]
    obs = observations(masked.spec.observation_space, 200)
    assert isinstance(obs, dict)
    obs["action_mask"][:, 2] = 1  # at least one is allowed
    params = NumpyPolicy(masked)(obs, {}, np.ones(200, bool)).params
    allowed = obs["action_mask"] > 0
    assert (params[~allowed] == FORBIDDEN).all()
    assert (params[allowed] != FORBIDDEN).all()
    assert allowed[np.arange(200), params.argmax(axis=1)].all()


def test_layouts_are_the_same_picture() -> None:
    layer = conv((5, 6), (2, 3, 4, 7), "tanh", padding=(1, 0, 0, 1))
    x = rows(3, layer.inputs)
    turned = np.ascontiguousarray(x.reshape(3, 5, 6, 4).transpose(0, 3, 1, 2)).reshape(3, -1)
    other = Conv(layer.weight, layer.bias, layer.size, layer.stride, layer.padding, layer.activation, "chw")
    assert np.array_equal(apply(layer, x), apply(other, turned))
