"""The numpy artefact: the deployed policy, without what a teacher brought along."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cases_export import CASES
from cases_layers import LAYER_CASES

from limbeck import blueprints
from limbeck.contracts import Blueprint, layer_arrays
from limbeck.exporters import numpy


def test_the_critic_stays_behind(tmp_path: Path) -> None:
    policy = CASES["linear"]
    layer = blueprints.load(numpy.export(policy, tmp_path).folder / numpy.FILE)[0].layers[0]
    critic = replace(layer, weight=layer.weight[:, :1], bias=layer.bias[:1])
    with_critic = replace(policy, value_layers=(critic,))
    artifact = numpy.export(with_critic, tmp_path / "second")
    saved, _ = blueprints.load(tmp_path / "second" / numpy.FILE)
    assert saved.value_layers == ()
    assert artifact.size_bytes == (tmp_path / "second" / numpy.FILE).stat().st_size
    assert saved.parameters == policy.parameters


@pytest.mark.parametrize("name", LAYER_CASES)
def test_every_layer_comes_back_exactly(name: str, tmp_path: Path) -> None:
    policy = LAYER_CASES[name]
    blueprints.save(policy, tmp_path / "policy.safetensors", {"seed": 3})
    found, provenance = blueprints.load(tmp_path / "policy.safetensors")
    assert provenance == {"seed": 3}
    assert (found.spec, found.head, found.view) == (policy.spec, policy.head, policy.view)
    assert bare(found) == bare(policy)
    for mine, theirs in zip(stored(found), stored(policy), strict=True):
        assert mine.dtype == np.float32
        assert mine.tobytes() == theirs.tobytes()


def stored(policy: Blueprint) -> list[np.ndarray]:
    return [array for layer in policy.layers for array in layer_arrays(layer)]


def bare(policy: Blueprint) -> str:
    """Everything about the layers but their numbers."""
    with np.printoptions(threshold=0, edgeitems=0):
        return repr(policy.layers)
