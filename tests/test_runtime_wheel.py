"""limbeck-runtime: the same modules, without torch and Gymnasium, play every artefact."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces as S

from limbeck import exporters, seeding, spaces, storage
from limbeck.contracts import Blueprint, Dense, Gru, Normaliser, Spec, View
from limbeck.exporters import golden
from limbeck.runtimes import compiled_c, wasm
from limbeck.runtimes.numpy import NumpyPolicy

ROOT = Path(__file__).parent.parent
PARTS = S.Dict({"place": S.Box(-2, 2, (3,), np.float32), "gear": S.Discrete(3, start=1), "allowed": S.MultiBinary(4)})
ACTIONS = {"int": S.Discrete(4, start=2), "box": S.Box(-1.5, 0.3, (2,), np.float64), "whole": S.Box(-3, 3, (2,), np.int64)}  # fmt: skip
EXACT = ("numpy", "safetensors", "python", "onnx", "onnx15")
PLAY = """
import json, sys
from pathlib import Path

BLOCKED = {"torch", "gymnasium", "scipy", "safetensors", "limbeck", "onnx", "fcntl"}  # the last is not on Windows
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(name + " is blocked")
if sys.argv[1] == "blocked":
    sys.path.insert(0, sys.argv[2])
    sys.meta_path.insert(0, Blocker())
import numpy as np
import limbeck_runtime
from limbeck_runtime._limbeck.exporters import replaying

told = {}
for folder in map(Path, sys.argv[3:]):
    golden = replaying.load(folder / "golden.safetensors")
    rows = {row.target: [row.ok, row.note] for row in limbeck_runtime.check(folder)}
    played = {}
    for target in rows:
        if rows[target][0] is None:
            continue
        policy = limbeck_runtime.load(folder, target)
        actions = []
        for i, first in enumerate(golden.first):
            if first:
                policy.reset()
            one = {k: v[i] for k, v in golden.obs.items()} if isinstance(golden.obs, dict) else golden.obs[i]
            actions.append(policy.step(one))
        played[target] = [np.asarray(actions).tolist(), type(actions[0]).__name__, str(np.asarray(actions[0]).dtype)]
    told[folder.name] = {"rows": rows, "played": played, "first": limbeck_runtime.load(folder).target}
files = [folder / "numpy" / "policy.safetensors", folder.parent / "bare.safetensors"]
print(json.dumps({"told": told, "files": [limbeck_runtime.load(f).target for f in files if f.is_file()], "loaded": sorted(BLOCKED & set(sys.modules))}))
"""


def policy(kind: str) -> Blueprint:
    """A small policy whose actions are whole choices, numbers or whole numbers; the first has memory and a mask."""
    rng, actions = seeding.generator(3, "train", 5), ACTIONS[kind]
    masked = kind == "int"
    space = PARTS if masked else S.Box(-2, 2, (5,), np.float32)
    view = View(mask="allowed", history=2) if masked else View()
    head, width = spaces.head_for(actions), spaces.flat_size(space, view)
    size = width * view.history

    def drawn(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    layers = (Gru(drawn(size, 12), drawn(4, 12), drawn(12), drawn(12)), Dense(drawn(4, head.width), drawn(head.width)))
    if not masked:
        layers = (Dense(drawn(size, 8) / 2, drawn(8), "gelu"), Dense(drawn(8, head.width) / 2, drawn(head.width)))
    norm = Normaliser(drawn(width), np.abs(drawn(width)) + 0.5, 3.0)
    return Blueprint(Spec(space, actions, "a 'task'"), head, layers, view, norm, name="policy")


def artefact(kind: str, folder: Path, targets: tuple[str, ...]) -> golden.Golden:
    made = policy(kind)
    space = made.spec.observation_space
    space.seed(1)
    drawn = [space.sample() for _ in range(40)]
    obs = np.stack(drawn)
    if isinstance(space, S.Dict):
        obs = {key: np.stack([one[key] for one in drawn]) for key in space.spaces}
        obs["allowed"][:, 0] = 1  # somewhere to go
    rows = golden.label(NumpyPolicy(made), obs, np.arange(40) % 9 == 0)
    exporters.export(made, folder, targets, rows)
    return rows


def assembled(folder: Path) -> Path:
    """The package as the wheel holds it, in a folder of its own."""
    shutil.copytree(ROOT / "runtime" / "limbeck_runtime", folder / "limbeck_runtime")
    runpy.run_path(str(ROOT / "runtime" / "setup.py"), run_name="limbeck_setup")["copy"](
        folder / "limbeck_runtime" / "_limbeck"
    )
    return folder


def run(python: str, *arguments: str) -> dict:
    done = subprocess.run(
        [python, "-I", "-W", "error", "-c", PLAY, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def held(told: dict, kind: str, rows: golden.Golden) -> None:
    """Every target that ran repeats the golden rows, one by one and as the environment wants them."""
    wanted = spaces.as_received(rows.actions, ACTIONS[kind])
    for target, (ok, note) in told["rows"].items():
        assert ok, (target, note)
        actions, name, dtype = told["played"][target]
        assert name == ("int" if kind == "int" else "ndarray")
        assert np.dtype(dtype) == ACTIONS[kind].dtype
        if target != "onnx_int8":
            np.testing.assert_allclose(actions, wanted, rtol=1e-5, atol=1e-5)


def test_it_plays_every_artefact_without_torch_and_gymnasium(tmp_path: Path) -> None:
    able = EXACT + (("c",) if compiled_c.find_compiler() else ())
    rows = {kind: artefact(kind, tmp_path / kind, able) for kind in ACTIONS}
    artefact("box", tmp_path / "box", (*able, "onnx_int8"))
    shutil.copy(tmp_path / "box" / "numpy" / "policy.safetensors", tmp_path / "bare.safetensors")
    found = run(
        sys.executable, "blocked", str(assembled(tmp_path / "site")), *(str(tmp_path / kind) for kind in ACTIONS)
    )
    assert (found["files"], found["loaded"]) == (["numpy", "safetensors"], [])
    for kind, told in found["told"].items():
        held(told, kind, rows[kind])
        assert told["first"] == "numpy"
    assert "lossy: actions" in found["told"]["box"]["rows"]["onnx_int8"][1]
    assert "onnx_int8" in found["told"]["box"]["played"]


FAULTS = """
import sys
sys.path.insert(0, sys.argv[1])
import limbeck_runtime
for argument in sys.argv[2:]:
    path, _, target = argument.partition("#")
    try:
        policy = limbeck_runtime.load(path, target or None)
        policy.step([1.0, 2.0])
    except (limbeck_runtime.InputError, limbeck_runtime.StorageError) as error:
        print(error)
"""


def test_faults_have_words(tmp_path: Path) -> None:
    for name in ("good", "changed", "unfinished", "unlisted"):
        artefact("box", tmp_path / name, ("numpy", "python"))
    with (tmp_path / "changed" / "python" / "policy.py").open("a") as file:
        file.write("print('changed')\n")
    (tmp_path / "unfinished" / "manifest.json").unlink()
    listed = json.loads((tmp_path / "unlisted" / "manifest.json").read_text())
    del listed["python/policy.py"]
    (tmp_path / "unlisted" / "manifest.json").write_text(json.dumps(listed))
    site = assembled(tmp_path / "site")
    cases = [
        "changed",
        "unfinished",
        "unlisted",
        "good#pyton",
        "good#wasm",
        "good",
        "good/golden.safetensors",
        "absent",
    ]
    done = subprocess.run(
        [sys.executable, "-I", "-c", FAULTS, str(site), *(str(tmp_path / case) for case in cases)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    for line, words in zip(lines, (
        "python/policy.py is no longer what was exported", "its export did not finish", "python/policy.py is not in manifest", "did you mean 'python'?",
        "unknown target 'wasm'", "of shape (2,) does not fit", "arrays but no Limbeck policy", "no contract.json",
    ), strict=True):  # fmt: skip
        assert words in line, line
    assert "changed" not in lines  # its print was never run


def test_versions_are_in_step() -> None:
    mine, theirs = (
        tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"] for folder in ("runtime", ".")
    )
    assert mine["version"] == theirs["version"]
    assert mine["dependencies"] == ["numpy>=2.0"]
    assert mine["optional-dependencies"]["wasm"] == theirs["optional-dependencies"]["wasm"]


@pytest.mark.slow
def test_the_wheel_in_a_fresh_environment_with_numpy_only(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "runtime", checkout / "runtime", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    shutil.copytree(
        ROOT / "src" / "limbeck", checkout / "src" / "limbeck", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(ROOT / "LICENSE", checkout)
    build = ("wheel", "--no-deps", "--no-build-isolation", "-w")
    pip(sys.executable, *build, str(tmp_path / "direct"), str(checkout / "runtime"))
    packed = [sys.executable, "setup.py", "-q", "sdist", "-d", str(tmp_path)]
    subprocess.run(packed, cwd=checkout / "runtime", capture_output=True, check=True)
    shutil.rmtree(checkout)  # from here on there is the source distribution alone
    (source,) = tmp_path.glob("limbeck_runtime-*.tar.gz")
    pip(sys.executable, *build, str(tmp_path), str(source))
    (wheel,) = tmp_path.glob("limbeck_runtime-*.whl")
    assert wheel.stat().st_size < 100_000
    (direct,) = (tmp_path / "direct").glob("limbeck_runtime-*.whl")
    assert package(wheel) == package(direct)
    assert {"limbeck_runtime/LICENSE", "limbeck_runtime/_limbeck/contracts/__init__.py"} < package(wheel).keys()
    venv.create(tmp_path / "fresh", with_pip=True)
    python = str(tmp_path / "fresh" / "bin" / "python")
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", str(wheel)], capture_output=True, text=True, check=False
    )
    if done.returncode and "No matching distribution found for numpy" in done.stderr:
        pytest.skip("no package index is reachable for numpy")
    assert done.returncode == 0, done.stderr
    able = ("numpy", "safetensors", "python", *(("c",) if compiled_c.find_compiler() else ()))
    rows = artefact("int", tmp_path / "int", able)
    artefact("box", tmp_path / "box", ("onnx", "numpy"))
    held(run(python, "installed", "", str(tmp_path / "int"))["told"]["int"], "int", rows)
    told = run(python, "installed", "", str(tmp_path / "box"))["told"]["box"]["rows"]
    assert told["onnx"][0] is None
    assert 'pip install "limbeck-runtime[onnx]"' in told["onnx"][1]


def package(wheel: Path) -> dict[str, bytes]:
    """What it installs, but for what describes it."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}


def pip(python: str, *arguments: str) -> None:
    done = subprocess.run([python, "-m", "pip", "-q", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_manifest_that_names_less_is_seen_by_its_targets(tmp_path: Path) -> None:
    """Checksums made again for a changed weight: the golden rows still say so. A broken file fails its own row alone."""
    artefact("box", tmp_path / "box", ("numpy", "safetensors", "python"))
    path = tmp_path / "box" / "numpy" / "policy.safetensors"
    arrays, meta = storage.read_arrays(path)
    arrays["layers.0.bias"] = arrays["layers.0.bias"] + np.float32(0.1)
    storage.write_arrays(path, arrays, meta)
    (tmp_path / "box" / "safetensors" / "policy.safetensors").write_bytes(b"damaged!")
    storage.write_manifest(tmp_path / "box")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import limbeck_runtime\n"
        "rows = limbeck_runtime.check(sys.argv[2]); print([r.ok for r in rows], rows[1].note)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(assembled(tmp_path / "site")), str(tmp_path / "box")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("[False, False, True] ")
    assert "is not a valid safetensors file" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(bool(wasm.missing("wasmtime")), reason=wasm.missing("wasmtime"))
def test_wasm_plays_where_wasmtime_is(tmp_path: Path) -> None:
    rows = artefact("box", tmp_path / "box", ("numpy", "wasm"))
    told = run(sys.executable, "blocked", str(assembled(tmp_path / "site")), str(tmp_path / "box"))
    held(told["told"]["box"], "box", rows)
