"""Every family of environments has one real distillation: its recipe, run as a user runs it, ends with the proof it promises.

Each recipe plays in a process of its own, since libraries of environments set global state, register and warn on import.
"""

import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from end_to_end_cases import assert_sound

from limbeck import storage, teachers
from limbeck.reporting import load_result
from limbeck.teachers.verification import stated_return

ROOT = Path(__file__).parent.parent
SECONDS = 1500  # at most, of one recipe: many times what it needs alone
PROVED = {  # recipe: students whose proof it promises, and the libraries it plays with, as (package, extra)
    "cartpole": (("mlp:8", "linear", "rule:3", "ternary:3"), (("sklearn", "trees"),)),
    "pendulum": (("mlp:16x16", "mlp:16", "mlp:8"), ()),
    "lunarlander": (("mlp:64x64", "mlp:32x32", "mlp:16x16"), (("Box2D", "envs"),)),
    "halfcheetah": (("mlp:64x64", "mlp:32x32"), (("mujoco", "envs"),)),
    "breakout": (("cnn:8k3:32", "mlp:32", "cnn:4k3:16"), (("minatar", "minatar"),)),
    "doorkey": (("cnn:8k2:32", "mlp:32x32", "mlp:16"), (("minigrid", "minigrid"), ("envpool", "envpool"))),
    "pong": (("cnn:8k8s4-16k4s2:64",), (("ale_py", "atari"), ("cv2", "atari"))),
    "highway": (("mlp:32x32", "mlp:16"), (("highway_env", "highway"), ("envpool", "envpool"))),
    "pursuit": (("mlp:32x32", "mlp:16"), (("pettingzoo", "multiagent"),)),
    "sardine": (("conv1d:32k1:64",), (("sardine", "recommender"),)),
    "digits": (("mlp:32", "mlp:16", "linear"), (("sklearn", "trees"),)),
}


def limbeck(*words):
    """The command line in a process of its own, in the repository's root, as the recipes' first lines say."""
    command = [sys.executable, "-c", "import sys; from limbeck import cli; sys.exit(cli.main())", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done


def needs(libraries):
    for package, extra in libraries:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f'{package} is not installed: pip install "limbeck[{extra}]"')


def test_every_recipe_is_run_here_or_beside_the_students_that_see_less():
    elsewhere = {"halfcheetah-hidden", "minigrid-memory", "cartpole-pixels", "pendulum-pixels"}
    assert {path.stem for path in (ROOT / "recipes").glob("*.yaml")} - elsewhere == set(PROVED)


def test_what_a_recipe_promises_is_among_its_students():
    for name, (promised, _) in PROVED.items():
        asked = {text.partition("@")[0] for text in yaml.safe_load((ROOT / f"recipes/{name}.yaml").read_text())["students"]}  # fmt: skip
        assert set(promised) <= asked, name


@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.parametrize("name", PROVED)
def test_a_recipe_ends_with_the_proof_it_promises(name, tmp_path):
    promised, libraries = PROVED[name]
    needs(libraries)
    folder = tmp_path / name
    limbeck("distill", f"recipes/{name}.yaml", "--out", folder)
    result, recipe = load_result(folder), yaml.safe_load((ROOT / f"recipes/{name}.yaml").read_text())

    proofs = {member.spec.partition("@")[0]: member.proof for member in result.members}
    for spec in promised:
        found = proofs[spec]
        assert found is not None, f"{spec} was not tested: a larger member was not proved"
        assert found.verdict == "proved", (spec, found.reason)
        assert found.retain == recipe["prove"]["retain"] == result.retain
        assert found.played_by == "c"
        assert found.episodes <= recipe["prove"].get("max_episodes", 1000)
    assert_teacher_is_as_stated(result, recipe["teacher"])
    assert_sound(folder, result, result.bill.collection_steps)
    if name == "halfcheetah":
        assert_the_student_keeps_it_on_v4(folder, result.members[0].name, recipe["teacher"])


def assert_teacher_is_as_stated(result, file):
    """The mean of verification's few episodes against the lower end of the stated interval, less three standard errors."""
    played = result.evaluations[result.mode]
    spread = 3 * float(np.std(played.returns, ddof=1)) / math.sqrt(played.episodes)
    assert played.mean > result.evaluations["random"].mean
    if file.startswith("bundled:"):
        return
    stated = stated_return(teachers.load(str(ROOT / file)).info)
    assert stated is not None
    assert played.mean >= stated - spread - 1e-9


def assert_the_student_keeps_it_on_v4(run, member, teacher):
    """HalfCheetah-v4 has the motion of v5: what was learnt on one is proved on the other."""
    student, out = run / "students" / member / "policy.safetensors", run / "v4.json"
    limbeck("prove", student, teacher, "HalfCheetah-v4", "--retain", 0.9, "--max-episodes", 300, "--out", out,
            "--options", "verify.episodes=20", "verify.random_episodes=20", "prove.bound_episodes=50")  # fmt: skip
    found = storage.read_json(out)["proof"]
    assert found["verdict"] == "proved", found["reason"]
    assert found["task"] == "HalfCheetah-v4"
