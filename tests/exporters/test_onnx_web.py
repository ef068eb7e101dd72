"""ONNX files in onnxruntime-web: the WebAssembly build that browsers load, here in node."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quantised_cases
from cases_export import CASES, observations, starts
from cases_layers import LAYER_CASES, WHOLE_CASES

from limbeck import exporters, spaces
from limbeck.contracts import Blueprint
from limbeck.exporters import golden
from limbeck.runtimes.numpy import NumpyPolicy

POLICIES: dict[str, tuple[Blueprint, str]] = {
    "history and gru": (CASES["gru with history"], "onnx"),
    "lstm": (LAYER_CASES["lstm"], "onnx"),
    "picture": (LAYER_CASES["conv hwc"], "onnx"),
    "norm of opset 15": (LAYER_CASES["norm"], "onnx15"),
    "squashed": (CASES["squashed"], "onnx"),
    "whole numbers": (quantised_cases.policy((5, 9, 8, 4), "tanh"), "onnx"),
    **{name: (made, "onnx") for name, made in WHOLE_CASES.items()},
    "int8": (CASES["squashed"], "onnx_int8"),
}
SCRIPT = """
import * as ort from 'onnxruntime-web';
import fs from 'node:fs';
ort.env.wasm.numThreads = 1;
const told = {};
for (const [name, asked] of Object.entries(JSON.parse(fs.readFileSync('asked.json')))) {
  const session = await ort.InferenceSession.create(new Uint8Array(fs.readFileSync(asked.path)), {executionProviders: ['wasm']});
  let states = {};
  for (const [key, size] of Object.entries(asked.states)) states[key] = new ort.Tensor('float32', new Float32Array(size), [1, size]);
  told[name] = {params: [], actions: []};
  for (let i = 0; i < asked.rows.length; i++) {
    const feeds = {obs: new ort.Tensor('float32', Float32Array.from(asked.rows[i]), [1, asked.rows[i].length]), ...states};
    if (session.inputNames.includes('first')) feeds.first = new ort.Tensor('bool', [asked.first[i]], [1]);
    const given = await session.run(feeds);
    told[name].params.push(Array.from(given.params.data));
    told[name].actions.push(Array.from(given.action.data, Number));
    for (const key of Object.keys(states)) states[key] = given[key + '_next'];
  }
}
fs.writeFileSync('told.json', JSON.stringify(told));
process.exit(0);
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with onnxruntime-web installed."""
    for program, package in (("node", "nodejs"), ("npm", "npm")):
        if shutil.which(program) is None:
            pytest.skip(f"no {program}: apt-get install {package}")
    place = tmp_path_factory.mktemp("web")
    (place / "package.json").write_text('{"name": "check", "private": true, "type": "module"}')
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "onnxruntime-web"]
    try:
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=240, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("npm install onnxruntime-web failed: its index did not answer")
    if done.returncode:
        pytest.skip(f"npm install onnxruntime-web failed: {done.stderr.strip().splitlines()[-1:]}")
    return place


@pytest.mark.slow
def test_they_act_as_in_python(folder: Path) -> None:
    asked: dict[str, Any] = {}
    wanted: dict[str, golden.Golden] = {}
    for name, (policy, target) in POLICIES.items():
        obs, first = observations(policy.spec.observation_space, 20), starts(20)
        rows = golden.label(NumpyPolicy(policy), obs, first)
        exporters.export(policy, folder / name, (target,), rows)
        played = exporters.load(folder / name, target)
        wanted[name] = golden.label(played, obs, first)
        asked[name] = {
            "path": f"{name}/{target}/policy.onnx",
            "rows": spaces.input_rows(obs, policy.spec.observation_space, policy.view).tolist(),
            "first": first.tolist(),
            "states": {key: value.shape[1] for key, value in played.initial_state(1).items()},
        }
    (folder / "asked.json").write_text(json.dumps(asked))
    (folder / "check.mjs").write_text(SCRIPT)
    done = subprocess.run(["node", "check.mjs"], cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads((folder / "told.json").read_text())
    for name, rows in wanted.items():
        params, actions = (np.array(told[name][key]) for key in ("params", "actions"))
        np.testing.assert_allclose(params, rows.params, rtol=1e-5, atol=1e-5, err_msg=name)
        if name.startswith("whole"):
            assert np.array_equal(params.astype(np.float32), rows.params), name
        np.testing.assert_allclose(actions, rows.actions.reshape(20, -1), rtol=1e-5, atol=1e-5, err_msg=name)
