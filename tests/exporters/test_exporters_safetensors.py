"""safetensors: the file that the format's own library reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from cases_export import CASES, observations, starts
from safetensors import safe_open

from limbeck import exporters
from limbeck.exporters import golden
from limbeck.runtimes.numpy import NumpyPolicy


def test_the_library_reads_what_is_written_and_it_plays(tmp_path: Path) -> None:
    policy = CASES["gru first"]
    rows = golden.label(NumpyPolicy(policy), observations(policy.spec.observation_space, 20), starts(20))
    (artifact,) = exporters.export(policy, tmp_path, ("safetensors",), rows)
    assert (artifact.target, artifact.files) == ("safetensors", ("policy.safetensors",))
    with safe_open(tmp_path / "safetensors" / "policy.safetensors", "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("layers.0.weight_h"), policy.layers[0].weight_h)
        assert json.loads(file.metadata()["limbeck"])["name"] == "policy"
    (row,) = exporters.check(tmp_path)
    assert (row.target, row.ok, row.worst_error) == ("safetensors", True, 0.0)
