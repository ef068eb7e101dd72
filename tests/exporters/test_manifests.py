"""What an artefact's manifest must list before anything of the folder is compiled or run, and what is no manifest."""

from __future__ import annotations

import json
import py_compile
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.util import cache_from_source
from pathlib import Path

import gymnasium as gym
import pytest
from cases_export import blueprint

from limbeck import cli, exporters, storage, tasks
from limbeck.exporters import c, contract
from limbeck.stages import ship

TAMPERED = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    task = tasks.resolve("CartPole-v1")
    policy = replace(blueprint(gym.spaces.Discrete(2), observation_space=task.spec.observation_space), spec=task.spec)
    folder = tmp_path_factory.mktemp("manifests") / "artefact"
    ship.export_one(policy, task, folder, ["python", "numpy"], 0, 16, {})
    return folder


@pytest.fixture
def copy(artefact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artefact, tmp_path / "copy"))


def relist(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    listed = json.loads((folder / storage.MANIFEST).read_text())
    change(listed)
    (folder / storage.MANIFEST).write_text(json.dumps(listed))


def unlist(name: str) -> Callable[[Path], None]:
    return lambda folder: relist(folder, lambda listed: listed.pop(name))


def contract_of(text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "contract.json").write_text(text)
        storage.write_manifest(folder)

    return change


def elsewhere(folder: Path) -> None:
    contract_of((folder / "contract.json").read_text().replace('"python"', '"../copy/python"'))(folder)


def without_files(folder: Path) -> None:
    shutil.rmtree(folder / "python")
    storage.write_manifest(folder)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (unlist("python/policy.py"), 2, "python/policy.py is not in manifest.json."),
        (unlist("golden.safetensors"), 2, "golden.safetensors is not in manifest.json."),
        (lambda folder: (folder / "python" / "numpy.py").touch(), 2, "python/numpy.py is not in manifest.json."),
        (without_files, 2, "python is not in manifest.json."),
        (lambda folder: (folder / "manifest.json").write_text("{}"), 2, "contract.json is not in manifest.json."),
        (lambda folder: (folder / "manifest.json").write_text(""), 5, "(char 0). Export the policy again."),
        *((lambda folder, no=no: (folder / "manifest.json").write_text(no), 5, "is damaged: it holds no checksums")
          for no in ("[1]", '"a"', "null", '{"contract.json": 1}')),
        *((lambda folder, out=out: relist(folder, lambda listed: listed.update({out: "0"})), 5, "is outside of its folder")
          for out in ("/etc/passwd", "../../x", "python/../../x")),
        (lambda folder: (folder / "contract.json").write_text("{"), 5, "contract.json is no longer what was exported"),
        (contract_of("[1]"), 5, "contract.json is damaged: "),
        (elsewhere, 5, "contract.json is damaged: "),
    ],
)  # fmt: skip
def test_nothing_runs_that_is_not_listed(
    change: Callable[[Path], object], code: int, words: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "python" / "policy.py").write_text(TAMPERED)
    relist(copy, lambda listed: listed.update({"python/policy.py": storage.sha256(copy / "python" / "policy.py")}))
    change(copy)
    for verb in ("check", "bench"):
        assert cli.main([verb, str(copy)]) == code
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
    assert not (copy / "python" / "ran").exists()


def test_a_cache_of_python_is_neither_read_nor_written(copy: Path) -> None:
    file = copy / "python" / "policy.py"
    assert all(row.ok for row in exporters.check(copy))
    assert [path.name for path in file.parent.iterdir()] == ["policy.py"]
    sound = file.read_bytes()
    file.write_text(TAMPERED)
    py_compile.compile(
        str(file), cache_from_source(str(file)), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    file.write_bytes(sound)
    assert all(row.ok for row in exporters.check(copy))
    assert not (file.parent / "ran").exists()


def test_hostile_keys_of_observations_are_text(tmp_path: Path) -> None:
    keys = ["</script><script>", "a\"b'c\nd*/e", "\u202ertl\u2066", "---\n[x](javascript:1)|`", "../../x"]
    space = gym.spaces.Dict({key: gym.spaces.Box(-1, 1, (1,)) for key in keys})
    policy = blueprint(gym.spaces.Discrete(2), observation_space=space, hidden=(4,))
    contract.write(policy, tmp_path, ("c",), {})
    c.export(policy, tmp_path / "c")
    assert set(contract.read(tmp_path).spec.observation_space) == set(keys)
    for text in ((tmp_path / "README.md").read_text(), (tmp_path / "c" / "policy.h").read_text()):
        assert not any(sign in text for sign in ("\u202e", "\u2066", "d*/e", "\n[x]"))
    table = [line for line in (tmp_path / "README.md").read_text().splitlines() if line.endswith("| numbers |")]
    assert [line.count("|") for line in table] == [5] * len(keys)
    assert not any(sign in line for line in table for sign in "<>`[]")
