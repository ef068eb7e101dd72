"""The numpy artefact: the deployed policy, without what a teacher brought along."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cases_export import CASES

from limbeck import blueprints
from limbeck.exporters import numpy


def test_the_critic_stays_behind(tmp_path: Path) -> None:
    policy = CASES["linear"]
    layer = blueprints.load(numpy.export(policy, tmp_path).folder / numpy.FILE)[0].layers[0]
    critic = replace(layer, weight=layer.weight[:, :1], bias=layer.bias[:1])  # type: ignore[type-var]
    with_critic = replace(policy, value_layers=(critic,))
    artifact = numpy.export(with_critic, tmp_path / "second")
    saved, _ = blueprints.load(tmp_path / "second" / numpy.FILE)
    assert saved.value_layers == ()
    assert artifact.size_bytes == (tmp_path / "second" / numpy.FILE).stat().st_size
    assert saved.parameters == policy.parameters
