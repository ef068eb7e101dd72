"""The one file: numpy alone, the whole policy, what users wrote is data."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import quantised_cases
from cases_export import CASES, blueprint, observations, starts
from cases_layers import LAYER_CASES
from cases_quantised_layers import SOME
from gymnasium import spaces as S
from test_exporters_trees import CASES as TREES

from limbeck import exporters, spaces
from limbeck.contracts import Blueprint, Layer, Spec
from limbeck.exporters import golden
from limbeck.exporters import python as target
from limbeck.exporters.onefile import policy as pythonpolicy
from limbeck.exporters.onefile import source as pythonsource
from limbeck.runtimes import numpy as reference
from limbeck.runtimes import python_file
from limbeck.runtimes.numpy import NumpyPolicy

QUANTISED = {
    f"{width} {activation}": quantised_cases.policy((5, 9, 8, 4), activation, width)
    for width, activation in (("int8", "relu"), ("int4", "tanh"), ("ternary", "hardtanh"))
}
ALL = {**CASES, **LAYER_CASES, **TREES, **QUANTISED, **SOME}
HOSTILE = "\"\"\"'''\\\n</script>*/ {x} %s \u202e\x00 import os; os.abort()"
PLAY = """
import json, sys
for name in ("limbeck", "torch", "gymnasium", "scipy"):
    sys.modules[name] = None
import numpy as np
sys.path.insert(0, ".")
from policy import Policy
policy = Policy()
rows = json.load(open("rows.json"))
said = []
for obs, first in zip(rows["obs"], rows["first"]):
    if first:
        policy.reset()
    action = policy.step(np.array(obs, rows["dtype"]))
    said.append([np.asarray(action).tolist(), type(action).__name__, str(np.asarray(action).dtype)])
loaded = {name.split(".")[0] for name, module in sys.modules.items() if module is not None}
print(json.dumps([said, sorted(n for n in loaded - set(sys.stdlib_module_names) - {"numpy", "policy"} if n[0] != "_")]))
"""


def rows_of(policy: Blueprint, count: int = 30) -> golden.Golden:
    return golden.label(NumpyPolicy(policy), observations(policy.spec.observation_space, count), starts(count))


@pytest.mark.parametrize("name", ALL)
def test_the_file_says_what_numpy_says(name: str, tmp_path: Path) -> None:
    policy = ALL[name]
    rows = rows_of(policy)
    artifact = target.export(policy, tmp_path)
    played = python_file.load(tmp_path / "policy.py", policy.spec, policy.head)
    result = golden.compare(rows, played)
    assert (result.ok, result.worst_error, result.actions_equal) == (True, 0.0, 1.0)
    assert artifact.size_bytes == (tmp_path / "policy.py").stat().st_size


@pytest.mark.parametrize(
    ("actions", "kind"),
    [(S.Discrete(4, start=-2), "int"), (S.Box(-0.2, 0.3, (2, 2), np.float64), "ndarray"), (S.Box(-3, 9, (2,), np.int64), "ndarray")],
)  # fmt: skip
def test_alone_with_numpy_it_acts_as_the_environment_wants(actions: S.Space, kind: str, tmp_path: Path) -> None:
    policy = blueprint(actions, hidden=(7,), activation="gelu", gru=3, clip=2.0)
    rows = rows_of(policy)
    exporters.export(policy, tmp_path, ("python",), rows)
    folder = tmp_path / "python"
    told = {
        "obs": np.asarray(rows.obs).tolist(),
        "first": rows.first.tolist(),
        "dtype": str(np.asarray(rows.obs).dtype),
    }
    (folder / "rows.json").write_text(json.dumps(told))
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", PLAY], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said, loaded = json.loads(done.stdout)
    assert loaded == []
    np.testing.assert_allclose([s[0] for s in said], spaces.as_received(rows.actions, actions), rtol=1e-6)
    assert {s[1] for s in said} == {kind}
    assert {np.dtype(s[2]) for s in said} == {actions.dtype}


def test_names_of_users_are_data(tmp_path: Path) -> None:
    space = S.Dict({HOSTILE: S.Box(-1, 1, (3,), np.float32), "x": S.Discrete(2)})
    policy = blueprint(S.Discrete(3), observation_space=space, hidden=(4,))
    policy = replace(policy, name=HOSTILE, spec=Spec(space, policy.spec.action_space, HOSTILE))
    exporters.export(policy, tmp_path, ("python",), rows_of(policy))
    text = (tmp_path / "python" / "policy.py").read_bytes().decode("ascii")
    plain = target.generate(replace(policy, name="policy", spec=Spec(space, policy.spec.action_space, "task")))
    code = [ast.dump(node) for node in ast.parse(text).body if "DESCRIBED" not in ast.dump(node)[:80]]
    assert code == [ast.dump(node) for node in ast.parse(plain).body if "DESCRIBED" not in ast.dump(node)[:80]]
    (found,) = (n for n in ast.parse(text).body if isinstance(n, ast.Assign) and n.targets[0].id == "DESCRIBED")
    described = ast.literal_eval(found.value)
    assert (described["name"], described["task"]) == (HOSTILE, HOSTILE)
    assert described["parts"][1]["key"] == "x"


def test_the_code_is_the_reference_word_for_word() -> None:
    text = target.generate(CASES["gru with history"])
    for function in (reference.gru_step, reference.windowed, spaces.within, pythonpolicy.Player):
        assert inspect.getsource(function).strip() in text
    assert "_convolve" not in text  # and only what this policy needs
    assert "lstm" not in text
    assert "_convolve" in target.generate(LAYER_CASES["conv hwc"])
    assert "gru" not in target.generate(CASES["tiny"])


def test_whole_numbers_take_the_bits_they_need() -> None:
    sizes = {
        w: len(target.generate(quantised_cases.policy((8, 64, 64, 4), "tanh", w))) for w in ("int8", "int4", "ternary")
    }
    numbers = 8 * 64 + 64 * 64 + 64 * 4
    for narrow, bits in (("int4", 4), ("ternary", 2)):
        saved = numbers * (8 - bits) / 8 * 4 / 3  # base64 writes 3 bytes as 4
        assert 0.95 * saved < sizes["int8"] - sizes[narrow] < 1.06 * saved


def test_two_things_of_one_name_are_refused() -> None:
    code = pythonsource.Excerpt({})
    code.add("limbeck.exporters.python", "_layer")
    with pytest.raises(ValueError, match="cannot lie in one file"):
        code.add("limbeck.exporters.onefile.policy", "_layer")


def test_wrong_observations_have_words(tmp_path: Path) -> None:
    target.export(CASES["dict"], tmp_path)
    flat_row = python_file.load(tmp_path / "policy.py", CASES["dict"].spec, CASES["dict"].head)._module.flat_row
    parts = target._described(CASES["dict"], {})["parts"]
    one = {key: value[0] for key, value in observations(CASES["dict"].spec.observation_space, 1).items()}
    flat_row(one, parts)
    with pytest.raises(ValueError, match=r"'zeta' holds 3 numbers\. Allowed: 4"):
        flat_row({**one, "zeta": np.zeros(3)}, parts)
    with pytest.raises(ValueError, match=r"'alpha' holds 9\. Allowed: 2 to 4"):
        flat_row({**one, "alpha": 9}, parts)
    with pytest.raises(KeyError, match="mid"):
        flat_row({key: value for key, value in one.items() if key != "mid"}, parts)


def test_every_layer_has_a_case() -> None:
    def kinds(layers: tuple[Layer, ...]) -> set[str]:
        return set(target._kinds(layers))

    known = {**reference.__dict__["_APPLY"], **reference.__dict__["_STEP"]}
    assert set().union(*(kinds(policy.layers) for policy in ALL.values())) >= set(known)
