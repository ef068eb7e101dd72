"""`limbeck diagnose` on runs whose shortfall was planted, on runs under way, and on what is no run."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from end_to_end_cases import CARTPOLE, small
from end_to_end_cases import quiet_process as quiet_process

import limbeck
from limbeck import blueprints, cli, identity, presenting, runs, seeding, settings, storage
from limbeck.contracts import Dense
from limbeck.errors import InputError, StorageError
from limbeck.machine import steady
from limbeck.proof.diagnosis import REST
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.stages import choosing, learn, opening, scene, ship
from limbeck.standalone import diagnosing, probing

TEACHERS = Path(__file__).parent.parent / "recipes" / "teachers"
BALANCER, SWINGER = TEACHERS / "cartpole.safetensors", TEACHERS / "pendulum.safetensors"
FEW_ROWS = ("collect.driver=teacher", "imitate.rounds=1", "imitate.gradient_steps=600", "collect.steps=40")
FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(autouse=True, scope="module")
def brief():
    """Probes of a quarter of the usual effort: these tasks are easy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probing, "ROUNDS", 5)
        patch.setattr(probing, "EPISODES", 1)
        patch.setattr(probing, "LEAST", (4000, 600))
        patch.setattr(probing, "MOST", (4000, 600))
        yield


def played(folder, teacher, env, student, options=(), save=False):
    """A run up to its last round, or up to its saved students: its scene, and the family that it would ship."""
    values = {"teacher": str(teacher), "env": env, "students": (student,), "verify": {"accept": True}}
    options = ["verify.episodes=8", "verify.random_episodes=8", "race.final_episodes=2", *options]
    recipe = settings.recipe_from(settings.with_options(values, options))
    task, opened = opening.open_both(recipe)
    recipe = replace(recipe, teacher_sha256=identity.of_teacher(opened))
    with storage.locked(folder), steady(1):
        here = scene.verify(runs.open_run(folder, recipe, lambda *_: None, identity.of_task(task)), task, opened)
        family, _ = learn.imitate_rounds(here)
        if save:
            ship.save_students(here, choosing.choose(here, family)[0])
    return here, family


def under_way(folder, teacher, env, student, options=(), save=True):
    played(folder, teacher, env, student, options, save)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diagnose") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("limbeck.reporting.side_by_side", lambda t, s, k, n, path, *r, **w: storage.write_json(path.with_suffix(".json"), {"reason": ""}))  # fmt: skip
        small(CARTPOLE, "CartPole-v1", folder, ("mlp:8", "linear"), ["export.targets=numpy"])
    return folder


# ---------------------------------------------------------------- planted


@pytest.mark.slow
def test_too_few_rows_are_a_lack_of_coverage(tmp_path):
    run = under_way(tmp_path / "run", SWINGER, "Pendulum-v1", "mlp:16x16", FEW_ROWS)
    found = limbeck.diagnose(str(run), episodes=16)
    assert found.cause == "coverage", found
    assert found.disagreement["student"] > 3 * found.disagreement["training"]


def test_a_linear_student_of_a_swing_up_lacks_capacity(tmp_path):
    run = under_way(tmp_path / "run", SWINGER, "Pendulum-v1", "linear", ["imitate.rounds=6"])
    found = limbeck.diagnose(str(run), episodes=16)
    assert found.cause == "capacity", found
    assert found.returns["larger"] > found.returns["data"] + 300


@pytest.mark.slow
def test_hidden_velocities_are_an_imitation_gap(tmp_path):
    run = under_way(tmp_path / "run", BALANCER, "CartPole-v1", "mlp:32x32", ["indices=0,2"])
    found = limbeck.diagnose(str(run), episodes=16)
    assert found.cause == "imitation gap", found
    assert found.returns["view"] > 5 * found.returns["larger"]


@pytest.mark.slow
def test_a_damaged_teacher_is_weak(tmp_path):
    whole, rng = blueprints.load(BALANCER)[0], np.random.default_rng(0)
    layers = [
        replace(one, weight=rng.permutation(one.weight)) if isinstance(one, Dense) else one for one in whole.layers
    ]
    blueprints.save(replace(whole, layers=tuple(layers)), tmp_path / "damaged.safetensors", {})
    run = under_way(
        tmp_path / "run", tmp_path / "damaged.safetensors", "CartPole-v1", "mlp:16x16", ["imitate.rounds=3"]
    )
    found = limbeck.diagnose(str(run), episodes=16)
    assert found.cause == "weak teacher", found
    assert (found.expected, found.expected_from) == (475.0, "Gymnasium's reward threshold")


# ---------------------------------------------------------------- what is read, and left alone


def digests(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def twice(finished, brief):
    """The same question asked twice, and whether the run's files are what they were."""
    before = digests(finished)
    first, again = (limbeck.diagnose(f"{finished}:linear-s0", episodes=8, expect=500.0) for _ in range(2))
    return first, again, digests(finished) == before


def test_the_run_is_only_read_and_the_same_question_has_the_same_answer(twice):
    first, again, untouched = twice
    assert replace(first, bill=again.bill) == again
    assert untouched
    assert first.member == "linear-s0"
    assert first.bill.env_steps > 3000
    assert first.bill.gradient_steps == 3 * 600
    best = max(first.expected, *(value for who, value in first.returns.items() if who != "random"))
    low = max(min(first.returns["student"], first.returns["teacher"]), first.returns["random"])
    whole = (best - low) / (best - first.returns["random"])  # of which every part is a share
    assert sum(first.parts.values()) == pytest.approx(whole, abs=1e-9)
    assert min(first.parts.values()) >= 0
    assert set(first.parts) == {"training", "coverage", "capacity", REST, "weak teacher"}


def test_its_seeds_are_no_other_stage_s():
    seeds = [seeding.episode_seed(0, "diagnose", i) for i in range(40)]
    assert {seeding.stage_of(seed) for seed in seeds} == {"diagnose"}


@pytest.mark.slow
def test_by_default_the_first_member_that_was_not_proved_is_asked_about(finished, tmp_path):
    assert limbeck.diagnose(str(finished), episodes=8).member == "mlp-8-s0"
    run = shutil.copytree(finished, tmp_path / "run")
    result = storage.read_json(run / "result.json")
    result["members"][0]["proof"]["verdict"] = "proved"
    storage.write_json(run / "result.json", result)
    assert limbeck.diagnose(str(run), episodes=8).member == "linear-s0"


@pytest.mark.slow
def test_a_run_under_way_is_read_from_its_newest_whole_checkpoint(tmp_path):
    run = under_way(tmp_path / "run", BALANCER, "CartPole-v1", "mlp:16x16", ["imitate.rounds=4"], save=False)
    newest = max((run / "checkpoints").iterdir())
    whole = limbeck.diagnose(str(run), episodes=8)
    assert whole.member == "mlp-16x16-s0"
    newest.write_bytes(newest.read_bytes()[:100])
    older = limbeck.diagnose(str(run), episodes=8)
    assert older.returns["teacher"] == whole.returns["teacher"]
    newest.unlink()
    assert limbeck.diagnose(str(run), episodes=8).returns == older.returns, "the damaged one was passed over"


OWN = {
    "nested": ("nested:16x16:w8", ()),
    "adapters": ("mlp:32", ("imitate.inherit=teacher", "imitate.adapt=r2")),
    "the running mean": ("mlp:8", ("imitate.average=0.99",)),
    "the best round": ("mlp:8", ("imitate.validation_share=0.5", "imitate.keep_best=True", "imitate.final_learning_rate=3", "imitate.rounds=4")),
    "own numbers of a loss": ("mlp:8", ("imitate.loss=kl + 0.1*hint@dense0=layers.1",)),
    "a tree": ("tree:leaves=8", ()),
    "a rule": ("rule:3", ()),
}  # fmt: skip


@pytest.mark.parametrize("what", OWN)
def test_of_a_run_under_way_it_reads_the_student_that_the_run_would_ship(what, tmp_path):
    student, options = OWN[what]
    options = ("imitate.rounds=2", "imitate.gradient_steps=20", "collect.steps=200", *options)
    here, family = played(tmp_path / "run", BALANCER, "CartPole-v1", student, options)
    before = digests(tmp_path / "run")
    scene = diagnosing._scene(here.run.folder, here.run.recipe, here.task, here.teacher)
    member, policy = diagnosing._student(scene, None)
    wanted = family.blueprint(member.name, here.task.name)
    obs = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
    first = np.ones(64, bool)
    says, should = (one(obs, one.initial_state(64), first).params for one in (policy, NumpyPolicy(wanted)))
    np.testing.assert_array_equal(says, should)
    assert should.std() > 0
    assert digests(tmp_path / "run") == before


def test_probes_of_a_tree_are_grown(tmp_path):
    """A silent tree falls after nine steps; one that is grown on the teacher's rows stands as the student does."""
    few = ("imitate.rounds=2", "collect.steps=1000")
    run = under_way(tmp_path / "run", BALANCER, "CartPole-v1", "tree:leaves=32", few, save=False)
    found = limbeck.diagnose(str(run), episodes=8)
    assert found.returns["random"] < 40
    assert min(found.returns["again"], found.returns["data"]) > 100
    assert found.cause != "capacity"
    assert found.bill.gradient_steps == 600, "the larger network alone takes gradient steps"


# ---------------------------------------------------------------- no environment


@pytest.mark.slow
def test_recordings_alone_cannot_tell_a_lack_of_data(tmp_path):
    data = FIXTURES / "demos_minari_cartpole"
    small(CARTPOLE, None, tmp_path / "run", ["mlp:8"], ["export.targets=numpy"], data=data)
    found = limbeck.diagnose(str(tmp_path / "run"), episodes=8)
    assert "data" not in found.returns
    assert "coverage" not in found.parts
    assert REST in found.parts
    assert "cannot be played" in found.notes[0]


def test_recordings_as_the_teacher_are_refused(tmp_path):
    data = FIXTURES / "demos_minari_cartpole"
    small(data, "CartPole-v1", tmp_path / "run", ["mlp:8"], ["export.targets=numpy", "verify.accept=True"])
    with pytest.raises(InputError, match="a recording: it can neither play nor label"):
        limbeck.diagnose(str(tmp_path / "run"))


# ---------------------------------------------------------------- bad input


def test_what_is_no_run_is_refused(tmp_path):
    for wrong in (tmp_path, tmp_path / "absent", f"{tmp_path}:mlp-8-s0", ""):
        with pytest.raises(InputError, match=r"is no run: it holds no recipe\.yaml"):
            limbeck.diagnose(str(wrong))


def test_a_member_that_does_not_exist_is_answered_with_the_nearest(finished):
    with pytest.raises(InputError, match="unknown member 'mlp-8-s1'; did you mean 'mlp-8-s0'"):
        limbeck.diagnose(f"{finished}:mlp-8-s1")


@pytest.mark.parametrize(("given", "said"), [
    ({"episodes": 3}, "allowed 8 to"), ({"expect": float("nan")}, "finite"),
    ({"seed": -1}, "seed = -1, allowed 0 to"), ({"seed": 2**31}, "allowed 0 to"),
])  # fmt: skip
def test_numbers_that_make_no_sense_are_refused(finished, given, said):
    with pytest.raises(InputError, match=said):
        limbeck.diagnose(str(finished), **given)


def test_a_teacher_that_was_replaced_is_refused(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("teacher_sha256: ", "teacher_sha256: 00"))
    with pytest.raises(StorageError, match="no longer what"):
        limbeck.diagnose(str(run))


def test_a_run_without_rows_says_to_wait(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "dataset")
    with pytest.raises(InputError, match="no collected rows yet"):
        limbeck.diagnose(str(run))
    shutil.rmtree(run / "students")
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(InputError, match="no student yet"):
        limbeck.diagnose(str(run))


# ---------------------------------------------------------------- the command line


def test_what_is_printed_fits_the_terminal(twice, monkeypatch, capsys):
    found = twice[0]
    for columns in (60, 80):
        monkeypatch.setenv("COLUMNS", str(columns))
        presenting.show("diagnose", found, False)
        shown = capsys.readouterr().out
        assert max(map(len, shown.splitlines())) <= columns
    for word in ("why", "to do", "retention", "trained again", "+ fresh data", "weak teacher", "random play", "cost"):
        assert word in shown
    assert "500, --expect" in shown


@pytest.mark.slow
def test_as_json_it_is_one_object(finished, capsys):
    assert cli.main(["diagnose", f"{finished}:mlp-8-s0", "--episodes", "8", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["member"] == "mlp-8-s0"
    assert set(told["parts"]) == {"training", "coverage", "capacity", REST, "weak teacher"}


def test_the_exit_code_of_a_wrong_folder(tmp_path, capsys):
    assert cli.main(["diagnose", str(tmp_path)]) == 2
    assert "is no run" in capsys.readouterr().err
