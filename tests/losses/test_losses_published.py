"""Losses against what their authors' own functions say: numbers and recipe in tests/reference/published_losses.py."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.contracts import Head
from limbeck.losses import LOSSES
from limbeck.testing import evaluated

STORED = json.loads((Path(__file__).parents[1] / "reference" / "published_losses.json").read_text())
GIVEN = {name: torch.from_numpy(np.array(rows)) for name, rows in STORED["given"].items()}
FOUND, FIVE = STORED["found"], Head("categorical", (5,))


def ours(name, **scalars):
    labels = {"params": GIVEN["teacher"], **{k: torch.tensor(v, dtype=torch.float64) for k, v in scalars.items()}}
    return evaluated(LOSSES[name], FIVE, labels, GIVEN["student"])


@pytest.mark.parametrize("case", FOUND["dkd"])
def test_dkd(case):
    beta, tau = map(float, case.split(","))
    assert ours("dkd", dkd_beta=beta, temperature=tau).mean().item() == pytest.approx(FOUND["dkd"][case], rel=1e-9)


@pytest.mark.parametrize("beta", FOUND["js"])
def test_generalised_jensen_shannon_of_trl(beta):
    assert ours("js", beta=float(beta)).tolist() == pytest.approx(FOUND["js"][beta], rel=1e-9)


def test_standardised_logits():
    assert ours("standardised").mean().item() == pytest.approx(
        FOUND["standardised"], rel=1e-6
    )  # without 1e-7 beside std


def test_dist():
    assert ours("dist", temperature=1.0).item() == pytest.approx(
        FOUND["dist"], rel=1e-6
    )  # theirs has 1e-8 in the divisor


def test_similarity():
    value = evaluated(LOSSES["similarity"], FIVE, {"feature": GIVEN["feature"]}, GIVEN["hidden"])
    assert value.item() == pytest.approx(FOUND["similarity"][0], rel=1e-9)


def test_relational():
    value = evaluated(LOSSES["relational"], FIVE, {"feature": GIVEN["feature"]}, GIVEN["hidden"])
    assert value.item() == pytest.approx(FOUND["relational"]["25,50"], rel=1e-9)


def test_attention():
    """The student's picture is 4 x 4 with its channels last, the teacher's 6 x 6 with its channels first."""
    hidden = GIVEN["hidden_map"].permute(0, 2, 3, 1).flatten(1)
    own = {"sides": torch.empty(4, 4, 2, 0, dtype=torch.float64)}
    value = evaluated(LOSSES["attention"], FIVE, {"feature": GIVEN["feature_map"]}, hidden, own)
    assert value.mean().item() == pytest.approx(FOUND["attention"], rel=1e-9)


def test_hint_is_the_mean_squared_error_of_a_one_by_one_convolution():
    rng = np.random.default_rng(0)
    weight, bias = torch.from_numpy(rng.normal(size=(2, 3))), torch.from_numpy(rng.normal(size=3))
    own = {"weight": weight, "bias": bias, "sides": torch.empty(4, 4, 2, 0, dtype=torch.float64)}
    hidden = GIVEN["hidden_map"].permute(0, 2, 3, 1).flatten(1)
    mine = torch.nn.functional.conv2d(GIVEN["hidden_map"], weight.T[:, :, None, None], bias)
    theirs = torch.nn.functional.adaptive_avg_pool2d(GIVEN["feature_map"], (4, 4))
    wanted = torch.nn.functional.mse_loss(mine, theirs).item()
    value = evaluated(LOSSES["hint"], FIVE, {"feature": GIVEN["feature_map"]}, hidden, own)
    assert value.mean().item() == pytest.approx(wanted, rel=1e-9)
