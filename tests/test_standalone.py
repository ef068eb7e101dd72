"""What stands beside a run: proofs that are continued or stand alone, exports, checks."""

import doctest
import functools
import json
import re
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from end_to_end_cases import CARTPOLE, no_film, small
from end_to_end_cases import quiet_process as quiet_process
from gymnasium.vector import SyncVectorEnv

import limbeck
from limbeck import blueprints, cli, exporters, rollout, seeding, storage, tasks, teachers
from limbeck.errors import InputError, StorageError
from limbeck.recipes import read as load_recipe
from limbeck.reporting import load_result
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.stages import proving
from limbeck.standalone import proofs
from limbeck.standalone.duels import Asked

FEW = ("prove.bound_episodes=40", "verify.episodes=10", "verify.random_episodes=10")


def test_examples():
    assert doctest.testmod(proofs) == (0, 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run whose first member has too few episodes to be proved, so the second is not tested."""
    folder = tmp_path_factory.mktemp("standalone") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks.watchdog, "hard_exit", False)
        patch.setattr("limbeck.reporting.side_by_side", no_film)
        options = [
            "export.targets=numpy",
            "prove.max_episodes=30",
            "collect.steps=500",
            "imitate.rounds=5",
            "imitate.gradient_steps=200",
        ]
        small(CARTPOLE, "CartPole-v1", folder, ("mlp:16x16", "mlp:8"), options, retain=0.9)
    return folder


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


# ---------------------------------------------------------------- proofs of a run


def test_the_run_s_own_claim_goes_on_and_is_told_by_the_run(run):
    before = load_result(run)
    first = before.members[0]
    assert before.family == 0.05, "one sequence"
    assert first.proof.verdict == "not proved"
    assert before.members[1].proof is None, "the sequence stops"
    found = limbeck.prove(f"{run}:{first.name}", max_episodes=400)
    assert (found.retain, found.alpha) == (0.9, 0.05), "the run's own values where none are given"
    assert found.verdict == "proved", found.reason
    assert not found.chosen_late
    after = load_result(run)
    assert after.members[0].proof == found
    assert found.fidelity == first.proof.fidelity
    assert after.bill.proof_steps - before.bill.proof_steps == found.env_steps - first.proof.env_steps > 0
    assert storage.check_manifest(run) == []
    limbeck.distill(str(run / "recipe.yaml"), out=run)
    assert load_result(run).members[0].proof == found, "running the recipe again takes nothing back"
    following = limbeck.prove(f"{run}:{before.members[1].name}", max_episodes=60)
    assert load_result(run).members[1].proof == following, "every larger member is proved: the sequence goes on"
    assert "agreement" in following.fidelity


def test_another_claim_stands_alone_beside_the_run(run):
    before = load_result(run)
    name = before.members[0].name
    found = limbeck.prove(f"{run}:{name}", retain=0.5, max_episodes=200)
    assert found.chosen_late
    assert found.verdict == "proved", found.reason
    assert found.retention_low >= 0.5
    assert "stands alone" in found.reason
    after = load_result(run)
    assert after.members == before.members
    assert any(note.startswith(f"{name} against 50 %") for note in after.notes)
    limbeck.prove(f"{run}:{name}", retain=0.5, max_episodes=200)
    assert load_result(run).notes == after.notes, "told once"
    untested = limbeck.prove(f"{run}:{before.members[1].name}", max_episodes=20)
    assert "stands alone" in untested.reason
    assert load_result(run).members[1].proof is None


def test_a_compressed_member_is_proved_at_its_share_of_alpha(run, monkeypatch):
    """The second member told as made from the first: a sequence of its own, whatever became of the first."""
    result, fixed = load_result(run), storage.read_json(run / "records" / "bounds.json")
    plain, made = result.members
    storage.write_json(run / "records" / "bounds.json", {**fixed, proving.SHARED: True})
    storage.write_json(
        run / "result.json", replace(result, members=[plain, replace(made, lineage=(plain.name, "prune 0.5"))])
    )
    found = limbeck.prove(f"{run}:{made.name}", max_episodes=20)
    assert (found.alpha, found.chosen_late) == (0.025, False)
    assert "stands alone" not in found.reason
    assert load_result(run).members[1].proof == found
    page = (run / "report.html").read_text()
    assert "One or more claims of the" in page
    assert "at the confidence of its own proof" in page, "some bounds are made at another level than the family's"
    monkeypatch.setattr("limbeck.reporting.write", lambda folder: None)  # its time
    again = limbeck.prove(f"{run}:{made.name}", max_episodes=40)
    assert (again.alpha, again.chosen_late) == (0.025, False), "it goes on at the level it was begun with"
    assert load_result(run).family == 0.05 != load_result(run).members[1].proof.alpha


def test_another_file_evades_neither_the_shared_level_nor_the_episodes_seen(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("limbeck.reporting.write", lambda folder: None)  # its time
    result, fixed = load_result(run), storage.read_json(run / "records" / "bounds.json")
    plain, made = result.members
    storage.write_json(run / "records" / "bounds.json", {**fixed, proving.SHARED: True})
    made = replace(made, lineage=(plain.name, "prune 0.5"))
    storage.write_json(run / "result.json", replace(result, members=[plain, made]))
    out = {"max_episodes": 20, "out": tmp_path / "other.json"}
    before = limbeck.prove(f"{run}:{made.name}", **out)
    assert (before.alpha, before.chosen_late) == (0.025, False)
    assert "stands alone" in before.reason
    assert load_result(run).members[1].proof is None, "the run's own proof is in its own file"
    capsys.readouterr()
    own = limbeck.prove(f"{run}:{made.name}", alpha=0.05, max_episodes=20)
    assert own.alpha == 0.025
    assert "the run's own claim: level 0.025 of the family's 0.05" in capsys.readouterr().err
    for number, claim in enumerate(({"alpha": 0.04}, {"retain": 0.5})):
        other = limbeck.prove(f"{run}:{made.name}", **{**out, "out": tmp_path / f"{number}.json"}, **claim)
        assert other.chosen_late, "the run's own proof was seen before this claim was chosen"
        assert other.student_returns[:20] == own.student_returns[: other.episodes]


@pytest.mark.parametrize("content", [[], {"shares_alpha": True}, {"bounds": 3, "env_steps": 1}])
def test_damaged_bounds_are_named_and_no_defect(run, content, capsys):
    storage.write_json(run / "records" / "bounds.json", content)
    assert cli.main(["prove", f"{run}:{load_result(run).members[0].name}"]) == 5
    assert "bounds.json is damaged" in capsys.readouterr().err
    if content:
        (run / "result.json").unlink()
        assert cli.main(["distill", str(run / "recipe.yaml"), "--out", str(run)]) == 5
        assert "bounds.json is damaged" in capsys.readouterr().err


def test_another_seed_begins_a_proof_of_its_own(run):
    name = load_result(run).members[0].name
    found = limbeck.prove(f"{run}:{name}", seed=5, max_episodes=20)
    assert found.seeds[0] == seeding.episode_seed(5, "proof", 0)
    assert len(list((run / "proofs").glob(f"{name}.*seed-5.json"))) == 1
    assert load_result(run).members[0].proof.seeds[0] == seeding.episode_seed(0, "proof", 0)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [({"normaliser": "x.pkl"}, "--normaliser"), ({"options": ["prove.bound_episodes=10"]}, "bound_episodes"), ({"options": ["seed=3"]}, "seed=3"),
     ({"options": ["prove.retain=.5"], "retain": 0.6}, "given twice"), ({"env": "CartPole-v1"}, "ENV")],
)  # fmt: skip
def test_what_a_run_cannot_honour_is_refused(run, arguments, word):
    with pytest.raises(InputError, match=word):
        limbeck.prove(f"{run}:{load_result(run).members[0].name}", **arguments)


def test_a_run_in_use_is_neither_proved_nor_exported_into(run):
    name = load_result(run).members[0].name
    with storage.locked(run):
        for verb in (lambda: limbeck.prove(f"{run}:{name}"), lambda: limbeck.export(run, [name], ["numpy"])):
            with pytest.raises(StorageError, match="in use"):
                verb()


def test_the_pilot_avoids_the_seeds_that_chose_the_member(run, monkeypatch):
    played = []
    real = rollout.play
    monkeypatch.setattr(
        rollout, "play", lambda policy, task, seeds, **k: played.extend(seeds) or real(policy, task, seeds, **k)
    )
    limbeck.prove(f"{run}:{load_result(run).members[0].name}", plan=True)
    chose = {seeding.episode_seed(0, "select", i) for i in range(100_000)}
    assert len(played) == 96
    assert not chose & set(played)
    assert {seeding.stage_of(seed) for seed in played} == {"select"}


def test_a_target_that_acts_differently_has_its_own_proof_stored(tmp_path, monkeypatch):
    def two_players(blueprint, artifacts):
        last = blueprint.layers[-1]
        other = replace(last, weight=-last.weight, bias=-last.bias)
        return {
            "c": NumpyPolicy(blueprint),
            "onnx": NumpyPolicy(replace(blueprint, layers=(*blueprint.layers[:-1], other))),
        }

    monkeypatch.setattr(proving, "players", two_players)
    options = ["export.targets=numpy", "imitate.rounds=1", "prove.max_episodes=20"]
    result = small(CARTPOLE, "CartPole-v1", tmp_path / "run", ["linear"], options)
    stored = json.loads((tmp_path / "run" / "proofs" / "linear-s0.onnx.json").read_text())
    assert stored["played_by"] == "onnx"
    assert stored["student_returns"] != list(result.members[0].proof.student_returns)
    assert len(stored["student_returns"]) == len(stored["seeds"]) > 0
    assert result.members[0].proof.played_by == "c"


# ---------------------------------------------------------------- proofs of two files


GOOD = "import numpy as np\ndef good(obs):\n    return (obs[:, 2] + obs[:, 3] > 0).astype(np.int64)\n"
BAD = "def bad(obs):\n    return (obs[:, 2] + obs[:, 3] < 0).astype(np.int64)\n"


def test_two_callables_of_one_module_have_proofs_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("rules_here.py").write_text(GOOD + BAD)
    ask = {"retain": 0.5, "max_episodes": 60, "options": FEW}
    good = limbeck.prove("rules_here:good", CARTPOLE, "CartPole-v1", **ask)
    assert (good.verdict, good.member) == ("proved", "rules_here:good")
    with pytest.raises(StorageError, match="other policies"):
        limbeck.prove("rules_here:bad", CARTPOLE, "CartPole-v1", **ask)
    with pytest.raises(StorageError, match="other policies"):
        limbeck.prove("rules_here:good", "rules_here:good", "CartPole-v1", **ask)
    assert limbeck.prove("rules_here:bad", CARTPOLE, "CartPole-v1", out="bad.json", **ask).verdict == "not proved"
    sys.modules.pop("rules_here")


def test_a_file_that_holds_no_proof_is_not_continued(made, tmp_path):
    student = next(made.glob("students/mlp-8*/policy.safetensors"))
    for content in ({"x": 1}, [1], {"claims": {}, "proof": 3}):
        storage.write_json(tmp_path / "other.json", content)
        with pytest.raises(StorageError, match=r"no proof|other policies"):
            limbeck.prove(str(student), CARTPOLE, "CartPole-v1", out=tmp_path / "other.json", options=FEW)


def test_options_are_heeded_and_flags_that_cannot_apply_are_refused(made):
    files = {"teacher": "t.zip", "env": "CartPole-v1"}
    kept = Asked(options=["prove.retain=.7"]).recipe(files).prove
    assert (kept.retain, kept.alpha, kept.max_episodes) == (0.7, 0.05, 1000)
    with pytest.raises(InputError, match=r"collect\.slots=4"):
        limbeck.prove(
            str(next(made.glob("students/mlp-8*/policy.safetensors"))),
            CARTPOLE,
            "CartPole-v1",
            options=["collect.slots=4"],
        )


# ---------------------------------------------------------------- export and check


def test_a_file_cannot_choose_what_is_imported(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("evil_module.py").write_text("from pathlib import Path\nPath('imported').touch()\n")
    blueprint = blueprints.load(next(made.glob("students/mlp-8*/policy.safetensors")))[0]
    object.__setattr__(blueprint.spec, "name", "evil_module:CartPole-v1")
    blueprints.save(blueprint, tmp_path / "policy.safetensors", {})
    with pytest.raises(InputError, match="--env"):
        limbeck.export(tmp_path / "policy.safetensors", to=["numpy"])
    assert not Path("imported").exists()
    assert limbeck.export(tmp_path / "policy.safetensors", to=["numpy"], env="CartPole-v1")[0].target == "numpy"
    with pytest.raises(InputError, match="observation space"):
        limbeck.export(tmp_path / "policy.safetensors", to=["numpy"], env="Pendulum-v1")


def test_an_export_into_a_run_is_told_by_the_run(run):
    name = load_result(run).members[0].name
    before = load_result(run).bill
    made = limbeck.export(run, [name], ["onnx", "onnx_int8"])
    told = {a.target: a.note for a in load_result(run).members[0].artifacts}
    assert set(told) == {"numpy", "onnx", "onnx_int8"}
    assert storage.check_manifest(run) == []
    golden_steps = exporters.golden.load(run / "artifacts" / name / "golden.safetensors").env_steps
    looped = int(re.search(r"repeats the policy in ([\d,]+) steps", told["onnx"])[1].replace(",", ""))
    assert told["onnx"].endswith("the policy's verdict was 'not proved'")
    after = load_result(run).bill
    assert after.other_steps - before.other_steps == golden_steps + looped
    assert replace(after, other_steps=before.other_steps) == before
    file = made[-1].folder / "policy.onnx"
    command = ["prove", str(file), load_recipe(run / "recipe.yaml")["teacher"], "CartPole-v1", "--retain", "0.9"]
    assert shlex.split(told["onnx_int8"].partition("not proved: limbeck ")[2]) == command
    assert teachers.load(file, tasks.resolve("CartPole-v1").spec).policy.head.discrete, "what it names can be proved"


def test_a_target_that_cannot_be_made_here_is_found_before_anything_is_played(run, monkeypatch):
    monkeypatch.setattr("limbeck.exporters.onnx.missing", lambda: "onnx is not installed")
    monkeypatch.setattr("limbeck.exporters.golden.record", None)
    before = (run / "manifest.json").read_bytes()
    name = load_result(run).members[0].name
    for source in (run, run / "students" / name / "policy.safetensors"):
        with pytest.raises(InputError, match="target onnx cannot be made here: onnx is not installed"):
            limbeck.export(source, ["all"], ["c", "onnx"])
    assert (run / "manifest.json").read_bytes() == before
    assert {path.name for path in (run / "artifacts" / name).iterdir() if path.is_dir()} == {"numpy"}


def test_the_singular_of_a_flag_is_the_flag(monkeypatch, capsys):
    given = []

    @functools.wraps(limbeck.export)
    def export(**arguments):
        given.append(arguments["members"])
        return []

    monkeypatch.setitem(cli.VERBS, "export", export)
    assert cli.main(["export", "RUN", "--member", "smallest", "--to", "onnx"]) == 0
    assert cli.main(["export", "RUN", "--member=a"]) == 0
    assert given == [("smallest",), ("a",)]
    assert cli.main(["export", "RUN", "--member", "a", "--members", "b"]) == 2
    assert "--members was given twice" in capsys.readouterr().err
    assert cli.main(["export", "RUN", "--en", "a"]) == 2
    assert "unknown argument '--en'" in capsys.readouterr().err


def test_check_looks_at_the_run_s_own_files(run):
    assert all(row.ok for row in limbeck.check(run))
    path = run / "result.json"
    told = json.loads(path.read_text())
    told["members"][0]["proof"]["verdict"] = "proved"
    path.write_text(json.dumps(told))
    with pytest.raises(StorageError, match=r"result\.json"):
        limbeck.check(run)


# ---------------------------------------------------------------- who a run belongs to


def test_a_changed_object_does_not_get_the_old_result(tmp_path):
    slope = [1.0]

    def lean(obs):
        return (obs[:, 2] + slope[0] * obs[:, 3] > 0).astype(np.int64)

    options = ["export.targets=numpy", "imitate.rounds=1", "collect.steps=64", "prove.max_episodes=8"]
    small(lean, "CartPole-v1", tmp_path / "run", ["linear"], options, retain=0.5)
    small(lean, "CartPole-v1", tmp_path / "run", ["linear"], options, retain=0.5)
    slope[0] = 3.0
    with pytest.raises(StorageError, match="teacher_sha256"):
        small(lean, "CartPole-v1", tmp_path / "run", ["linear"], options, retain=0.5)


def test_another_vector_environment_does_not_continue_the_run(tmp_path):
    options = ["export.targets=numpy", "imitate.rounds=1", "collect.steps=64", "prove.max_episodes=8"]
    for count in (2, 3):
        env = SyncVectorEnv([lambda: gym.make("CartPole-v1", max_episode_steps=30)] * count)
        if count == 2:
            small(CARTPOLE, env, tmp_path / "run", ["linear"], options, accept_teacher=True)
        else:
            with pytest.raises(StorageError, match="lanes"):
                small(CARTPOLE, env, tmp_path / "run", ["linear"], options, accept_teacher=True)
        env.reset(seed=0)
        env.close()


def test_inspect_takes_no_argument_that_it_would_ignore(capsys):
    assert cli.main(["inspect", CARTPOLE, "--normaliser", "nowhere.pkl"]) == 2
    assert "--normaliser" in capsys.readouterr().err
