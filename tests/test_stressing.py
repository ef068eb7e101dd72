"""`limbeck stress` and the stage of a run: rows in the result, on the bill and on the page, continued where stopped."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import yaml
from end_to_end_cases import CARTPOLE, no_film, small
from end_to_end_cases import quiet_process as quiet_process
from reporting import reporting_samples

import limbeck
from limbeck import blueprints, cli, presenting, recipes, runs, settings, storage, tasks
from limbeck.contracts import Blueprint, Dense, Head, Spec, Stressed, View
from limbeck.errors import InputError, StorageError
from limbeck.reporting import load_result
from limbeck.stages import stressing
from limbeck.stages.opening import open_both
from limbeck.stages.portrait import names
from limbeck.teachers.demonstrations import DemonstratedPolicy

LONGEST = 100  # steps of an episode, as its teacher never falls
FILE = "stress/linear-s0.episodes-3.seed-0.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stressing") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks.watchdog, "hard_exit", False)
        patch.setattr("limbeck.reporting.side_by_side", no_film)
        options = [
            "export.targets=numpy",
            "stress.episodes=3",
            "stress.disturbances=length",
        ]
        short = {"teacher": CARTPOLE, "env": "CartPole-v1", "task": {"kwargs": {"max_episode_steps": LONGEST}}}
        (recipe := folder.with_suffix(".yaml")).write_text(yaml.safe_dump(short))
        small(recipe, None, folder, ("linear",), options, retain=0.5)
    return folder


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def rows(run):
    return {(row.disturbance, row.level): row for row in load_result(run).members[0].stressed}


def test_the_stage_fills_the_result_and_the_bill(made):
    result = load_result(made)
    assert list(rows(made)) == [("none", 0), ("length", 0.8), ("length", 1.25)]
    assert result.bill.stress_steps == sum(row.env_steps for row in rows(made).values()) > 0
    bill = result.bill
    others = bill.verify_steps + bill.collection_steps + bill.race_steps + bill.polish_steps + bill.proof_steps
    assert bill.env_steps == others + bill.critic_steps + bill.other_steps + bill.stress_steps
    assert all(row.episodes == 3 for row in rows(made).values())
    assert rows(made)["none", 0].teacher == pytest.approx(LONGEST, abs=20)


def test_the_members_are_portrayed(made):
    (member,) = load_result(made).members
    assert sum(member.saliency.values()) == pytest.approx(1)
    assert set(member.saliency) == {f"obs[{i}]" for i in range(4)}
    assert member.simplicity == {}
    assert member.tails["teacher iqm"].value == pytest.approx(1.0, abs=0.05)
    assert member.tails["worst 1 %"].interval == "needs 555 episodes"


def test_the_verb_adds_rows_and_repeats_none(run, monkeypatch):
    before = load_result(run).bill
    told = limbeck.stress(str(run), episodes=3, disturbances=["length", "delay"])
    everything = [("none", 0), ("delay", 1), ("delay", 2), ("length", 0.8), ("length", 1.25)]
    assert [(row.disturbance, row.level) for row in told] == everything, "in their own order"
    found, after = rows(run), load_result(run).bill
    assert list(found) == everything
    played = found["delay", 1].env_steps + found["delay", 2].env_steps
    assert after.stress_steps - before.stress_steps == played == after.env_steps - before.env_steps
    assert storage.check_manifest(run) == []
    monkeypatch.setattr("limbeck.rollout.play", must_not_play)
    (*few, _, _) = told
    assert limbeck.stress(str(run), episodes=3, disturbances=["delay"]) == few
    assert list(rows(run)) == everything, "rows that were not asked for stay"
    assert load_result(run).bill == after, "what is told again costs nothing"


def must_not_play(*arguments, **named):
    raise AssertionError("played again")


def test_stopped_anywhere_it_goes_on_to_the_same_rows(run, monkeypatch):
    monkeypatch.setattr("limbeck.reporting.write", lambda folder: None)  # its time
    asked = {"episodes": 2, "disturbances": ["delay"], "seed": 7}
    write, count = storage.write_json, []

    def killed(path, value):
        count.append(path)
        if len(count) == 3:  # undisturbed and the first row are stored
            raise KeyboardInterrupt
        write(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            limbeck.stress(f"{run}:linear-s0", **asked)
    before = load_result(run).bill.stress_steps
    continued = limbeck.stress(f"{run}:linear-s0", **asked)
    told = sum(row.env_steps for row in continued)
    assert load_result(run).bill.stress_steps - before == told, "what the killed call played is on the bill too"
    shutil.rmtree(run / "stress")
    assert limbeck.stress(f"{run}:linear-s0", **asked) == continued
    assert [row.episodes for row in continued] == [2, 2, 2]


def test_rows_of_another_seed_make_room_and_are_billed_once(run, monkeypatch):
    """Seed 0 was played by the run; seed 7 is played once, and both are read from their files after that."""
    monkeypatch.setattr("limbeck.reporting.write", lambda folder: None)  # its time
    bills, seeds = [load_result(run).bill.stress_steps], []
    for seed in (0, 7, 0, 7):
        told = limbeck.stress(str(run), episodes=3, disturbances=["length"] if seed == 0 else ["delay"], seed=seed)
        bills.append(load_result(run).bill.stress_steps)
        seeds.append({row.seed for row in rows(run).values()})
        assert tuple(told) == tuple(rows(run).values()), "none of another seed stays beside them"
    played = sum(row.env_steps for row in told)
    assert np.diff(bills).tolist() == [0, played, 0, 0]
    assert seeds == [{0}, {7}, {0}, {7}]
    assert storage.check_manifest(run) == []


def test_rows_of_another_attack_are_played_again_and_stay_on_the_bill(run, monkeypatch):
    """A row stored as the single signed step once was: its unit says that it is another attack."""
    monkeypatch.setattr("limbeck.reporting.write", lambda folder: None)  # its time
    asked = {"episodes": 2, "disturbances": ["adversarial"], "seed": 3}
    told = limbeck.stress(str(run), **asked)
    assert {row.unit for row in told[1:]} == {"standard deviations (PGD, 4 steps)"}
    path, before = run / "stress" / "linear-s0.episodes-2.seed-3.json", load_result(run).bill.stress_steps
    stored = storage.read_json(path)
    stored["rows"][0]["unit"] = "standard deviations"
    storage.write_json(path, stored)
    assert limbeck.stress(str(run), **asked) == told
    assert load_result(run).bill.stress_steps - before == told[1].env_steps, "one row was played again"
    assert limbeck.stress(str(run), **asked) == told
    assert load_result(run).bill.stress_steps - before == told[1].env_steps


def test_tables_fit_80_columns(capsys, monkeypatch):
    """Levels whose unit is too long, and rows without a share or an interval, are told behind the table."""
    monkeypatch.setenv("COLUMNS", "80")
    nan, long = float("nan"), "standard deviations in whole numbers, probability of a flipped bit"
    shares = {"unit": "standard deviations (PGD, 4 steps)", "episodes": 64, "env_steps": 1234567}
    rows = [
        Stressed("none", 0, "as the environment is", -1234.5, -1250.5, 1.0005, 0.9, 1.1, 64, 10),
        Stressed("noise", 0.05, "standard deviations", 500, 499, 0.998, -0.991, 1.005, 64, 10),
        Stressed("noise", 0.1, long, 500, 499, 0.998, nan, nan, 64, 10),
        Stressed("delay", 1, "steps", 1, 1, nan, nan, nan, 64, 10),
        Stressed("adversarial", 0.05, shares["unit"], 500, 100, 0.2, 0.1, 0.3, 64, shares["env_steps"]),
    ]
    presenting.show("stress", rows, False)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    for words in ("1 step ", "0.05 standard deviations ", "* of adversarial: ", "PGD, 4 steps", "of a flipped"):
        assert words in said
    assert "no interval:" in said
    assert "not above random play" in said
    proof = replace(reporting_samples.proof("mlp-8-s0", 0.97, 40), reason="proved after 40 episodes, " * 8)
    presenting.show("prove", proof, False)
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    assert "\nreason           proved after" in said


def test_the_stage_bills_what_it_played_in_place_of_another_attack(run):
    """Stopped in the stage with a row of another attack in its file, and once more after the file was settled."""
    recipe = settings.recipe_from(recipes.read(run / "recipe.yaml"))
    stored = storage.read_json(run / FILE)
    stored["rows"][0]["unit"] = "an attack of before"
    storage.write_json(run / FILE, {**stored, "billed": 0})
    (run / "records" / "stress-linear-s0.json").unlink()
    (blueprint, _), (task, teacher) = blueprints.load(run / "students/linear-s0/policy.safetensors"), open_both(recipe)
    chosen = SimpleNamespace(member=SimpleNamespace(name="linear-s0"), blueprint=blueprint)
    kept = runs.Run(run, recipe, {}, lambda *_: None)
    here = SimpleNamespace(run=kept, teacher=teacher, task=task, mode=load_result(run).mode, seed=0)
    played = load_result(run).bill.stress_steps + stored["rows"][0]["env_steps"]
    for _ in range(2):
        told = stressing.stress(here, [chosen], {"linear-s0": []}, SimpleNamespace(proofs={}))
        assert tuple(told["linear-s0"]) == tuple(rows(run).values()), "the same draws"
        assert storage.read_json(run / "records" / "stress-linear-s0.json")["stress_steps"] == played
        (run / "records" / "stress-linear-s0.json").unlink()  # as killed before it was written


def test_two_files_are_played_without_a_run(run, capsys):
    student = str(run / "students" / "linear-s0" / "policy.safetensors")
    assert cli.main(["stress", student, CARTPOLE, "CartPole-v1", "--episodes", "2", "--disturbances", "force"]) == 0  # fmt: skip
    out = capsys.readouterr().out
    assert "force        0.8 times" in out
    assert "measured, not proved" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["RUN", "--disturbances", "nose"], "unknown disturbance 'nose'; did you mean 'noise'?"),
        (["RUN", "--disturbances", "noise", "wind"], "'wind' cannot be played on CartPole-v1"),
        (["RUN", "--episodes", "1"], "--episodes was given 1, allowed 2 to 100,000"),
        (["RUN:mlp"], "unknown member 'mlp'"),
        (["nowhere"], "stress was given 'nowhere' without a teacher"),
        (["a.safetensors", "b.safetensors"], "stress needs an environment beside student and teacher"),
    ],
)
def test_what_cannot_be_is_refused(made, capsys, arguments, told):
    assert cli.main(["stress", *[one.replace("RUN", str(made)) for one in arguments]]) == 2
    assert told in capsys.readouterr().err


def test_a_recipe_s_names_are_refused_before_anything_runs(tmp_path):
    with pytest.raises(InputError, match="unknown disturbance 'delai'; did you mean 'delay'"):
        small(CARTPOLE, "CartPole-v1", tmp_path / "run", ("linear",), ["stress.disturbances=delai"])
    with pytest.raises(InputError, match=r"'wind' cannot be played on .*: .* Allowed here: noise, "):
        small(CARTPOLE, "CartPole-v1", tmp_path / "run", ("linear",), ["stress.episodes=2", "stress.disturbances=wind"])
    assert not (tmp_path / "run").exists()


def test_rows_of_other_policies_do_not_count_and_damaged_ones_are_named(run):
    stored, path = storage.read_json(run / FILE), run / FILE
    known = stressing.read_rows(path, stored["claims"])
    assert {("none", 0.0): known.base.row} | known.rows == rows(run)
    assert stressing.read_rows(path, {**stored["claims"], "student": "0" * 64}) is None
    storage.write_json(path, {**stored, "rows": "none"})
    with pytest.raises(StorageError, match="is damaged"):
        limbeck.stress(str(run), episodes=3)


def test_recordings_are_refused(made):
    recipe = settings.recipe_from(recipes.read(made / "recipe.yaml"))
    task = tasks.resolve("CartPole-v1")
    with pytest.raises(InputError, match="cannot be played under disturbances"):
        stressing.refuse(recipe, task, DemonstratedPolicy.__new__(DemonstratedPolicy))


def test_numbers_are_named_by_key_place_and_choice():
    space = gym.spaces.Dict({"b": gym.spaces.Discrete(2, start=3), "a": gym.spaces.Box(-1, 1, (2,), np.float32)})
    layer = Dense(np.zeros((4, 2), np.float32), np.zeros(2, np.float32))
    spec = Spec(space, gym.spaces.Discrete(2))
    assert names(Blueprint(spec, Head("categorical", (2,)), (layer,))) == ["a[0]", "a[1]", "b = 3", "b = 4"]
    picked = Blueprint(spec, Head("categorical", (2,)), (layer,), View(keys=("b", "a"), indices=(0, 3)))
    assert names(picked) == ["b = 3", "a[1]"]
