"""limbeck search with real processes, real kills and real files."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from cli_cases import called
from search_cases import TEACHER, arguments, ended, found, started, tiny

from limbeck import cli, verbs
from limbeck.errors import InputError, StorageError
from limbeck.scale.sampling import Book, refuse_unfit


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    code, _, err = called(*arguments(tiny(folder), folder / "out"))
    assert code == 0, err
    return folder / "out"


def trained(folder: Path) -> list[int]:
    """Trials in the order of the passes, from the passes' own files."""
    return [c["trial"] for plan, _ in found(folder)["passes"] for c in plan["candidates"]]


def test_every_trial_is_trained_once_and_the_study_agrees(whole: Path) -> None:
    numbers = trained(whole)
    assert len(numbers) == len(set(numbers)) == 4
    study = Book(whole, "journal", "TPESampler", 2, 0).trials()
    complete = {t.number: t.values for t in study if t.state == "complete"}
    outcomes = {o["trial"]: (o["size_bytes"], o["mean_return"]) for _, mine in found(whole)["passes"] for o in mine}
    assert complete == outcomes
    assert {t.state for t in study} <= {"complete", "refused"}


def test_half_of_each_pass_stays_behind_at_the_lower_rung(whole: Path) -> None:
    for plan, outcomes in found(whole)["passes"]:
        assert sorted(o["rung"] for o in outcomes) == [0, 1]
        assert [c["spec"] for c in plan["candidates"]] == [o["spec"] for o in outcomes]


def test_the_front_is_what_no_other_candidate_beats(whole: Path) -> None:
    able = [o for _, outcomes in found(whole)["passes"] for o in outcomes if o["full"]]
    front = found(whole)["front"]
    for row in front:
        beaten = [
            o for o in able
            if o["size_bytes"] <= row["size_bytes"] and o["mean_return"] >= row["mean_return"]
            and (o["size_bytes"], o["mean_return"]) != (row["size_bytes"], row["mean_return"])
        ]  # fmt: skip
        assert not beaten
    sizes = [row["size_bytes"] for row in front]
    assert sizes == sorted(sizes, reverse=True)


def test_proof_seeds_were_never_used_for_choosing(whole: Path) -> None:
    from limbeck import seeding

    proofs = [json.loads(p.read_text()) for p in (whole / "final" / "proofs").glob("*-t*.json")]
    assert proofs
    assert all(seeding.stage_of(seed) == "proof" for proof in proofs for seed in proof["seeds"])


def test_the_bill_is_that_of_all_passes_and_the_proofs(whole: Path) -> None:
    passes = [json.loads(p.read_text())["bill"] for p in sorted((whole / "passes").glob("*/result.json"))]
    bill = found(whole)["bill"]
    for key in ("collection_steps", "teacher_queries", "gradient_steps", "race_steps", "polish_steps"):
        assert bill[key] == sum(one[key] for one in passes), key
    assert bill["collection_steps"] == 2 * (1 + 2) * 128
    assert bill["proof_steps"] > 0


def test_the_same_command_tells_the_result_again_in_80_columns_and_plays_nothing(
    whole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*.json")}
    assert cli.main(arguments(whole.parent / "tiny.yaml", whole)) == 0
    said = capsys.readouterr()
    assert "told again" in said.err
    assert "4 candidates" in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*.json")} == before


def test_the_report_says_how_to_search_again(whole: Path) -> None:
    result = json.loads((whole / "final" / "result.json").read_text())
    assert result["command"].startswith("limbeck search ")
    assert result["command"].endswith("--out NEW_FOLDER")
    assert "limbeck search" in (whole / "final" / "report.html").read_text()


@pytest.mark.slow
def test_same_seed_same_search(whole: Path, tmp_path: Path) -> None:
    code, _, err = ended(started(*arguments(tiny(tmp_path), tmp_path / "again")))
    assert code == 0, err
    assert found(tmp_path / "again") == found(whole)


@pytest.mark.parametrize(
    "point",
    [
        "after:passes/0001/rung-0/checkpoints/round-000000:1",
        *(
            pytest.param(point, marks=pytest.mark.slow)
            for point in (
                "before:passes/0000/pass.json:1",  # the sampler was asked, nobody knows of it yet
                "torn:passes/0000/result.json:1",
                "after:passes/0001/result.json:1",  # trained, not told to the study
                "before:final/records/prove-:1",
            )
        ),
    ],
)
def test_a_killed_search_goes_on_to_the_same_end(point: str, whole: Path, tmp_path: Path) -> None:
    words = arguments(tiny(tmp_path), tmp_path / "out")
    code, _, _ = ended(started(*words, killed_at=point))
    assert code == -signal.SIGKILL
    code, _, err = called(*words)
    assert code == 0, err
    again, first = found(tmp_path / "out"), found(whole)
    numbers = [{**o, "trial": 0} for _, outcomes in again["passes"] for o in outcomes]
    assert numbers == [{**o, "trial": 0} for _, outcomes in first["passes"] for o in outcomes]
    assert again["bill"] == first["bill"]


@pytest.mark.slow
def test_two_processes_share_a_search_and_one_takes_over_from_the_other(tmp_path: Path) -> None:
    """The first is killed in the middle of a pass while the second works: each trial is trained once, none is lost."""
    recipe, out = tiny(tmp_path, imitate={"gradient_steps": 60}), tmp_path / "out"
    words = arguments(recipe, out, trials=8)
    first = started(*words)
    _await(lambda: (out / "passes" / "0000" / "attempts.json").exists())
    second = started(*words)
    _await(lambda: len(list((out / "passes").glob("*/attempts.json"))) >= 2)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    code, _, err = ended(second)
    assert code == 0, err
    numbers = trained(out)
    assert len(numbers) == len(set(numbers)) == 8
    attempts = [json.loads(p.read_text())["attempts"] for p in sorted((out / "passes").glob("*/attempts.json"))]
    assert sorted(attempts) == [1, 1, 1, 2]
    assert "left by a process that died" in err


@pytest.mark.slow
def test_two_living_processes_tell_the_same(tmp_path: Path) -> None:
    words = arguments(tiny(tmp_path), tmp_path / "out", trials=6)
    both = [started(*words), started(*words)]
    answers = [ended(process) for process in both]
    assert [code for code, _, _ in answers] == [0, 0], answers
    assert answers[0][1] == answers[1][1]
    numbers = trained(tmp_path / "out")
    assert len(numbers) == len(set(numbers)) == 6


def _await(happened: object, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


# ---------------------------------------------------------------- wrong input


@pytest.mark.slow
def test_a_pass_that_kills_three_processes_is_left_alone(tmp_path: Path) -> None:
    words = arguments(tiny(tmp_path), tmp_path / "out", trials=2)
    for _ in range(3):
        code, _, _ = ended(started(*words, killed_at="before:passes/0000/rung-0/checkpoints:1"))
        assert code == -signal.SIGKILL
    code, _, err = ended(started(*words))
    assert code == 0
    assert "left alone" in err
    assert found_failed(tmp_path / "out") == 2


def found_failed(folder: Path) -> int:
    return int(json.loads((folder / "front.json").read_text())["failed"])


def refused(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = cli.main(list(words))
    return code, capsys.readouterr().err.splitlines()[-1]


def test_nothing_fits_says_the_smallest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = refused(*arguments(tiny(tmp_path), tmp_path / "out", "--max-bytes", "39"), capsys=capsys)
    assert code == 2
    assert "linear, has 40. Allow" in said  # CartPole: 4 inputs x 2 actions + 2 biases, 4 bytes each
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--sampler", "TPESampeler"), "did you mean 'TPESampler'?"),
        (("--storage", "mysql://root:secret@db"), "Allowed: journal"),
        (("--students", "cnn:*"), "needs an image"),
        (("--students", "mlpp:*"), "did you mean 'mlp:*'? Allowed: cnn:*, gru:*, mlp:*."),
        (("--students", "mlpp:8"), "did you mean 'mlp'?"),
        (("--students",), "students is empty, allowed one value or more"),
        (("--max-latency", "fast"), "max_latency = fast, allowed 1ns to 3600s: a number and its unit, s, ms, us or ns"),
        (("--max-latency", "-5us"), "max_latency = -5us, allowed 1ns to 3600s"),
        (("--max-latency", "2e9"), "max_latency = 2e9, allowed 1ns to 3600s"),
        (("--max-latency", "1ns"), "no student of the search is as fast"),
        (("--env-steps", "100"), "less than one pass takes"),
        (("--trials", "0"), "allowed 1 to"),
    ],
)
def test_refused_in_one_line(
    more: tuple[str, ...], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments(tiny(tmp_path), tmp_path / "out")
    if more[0] == "--trials":
        words = [w for n, w in enumerate(words) if w != "--trials" and words[n - 1] != "--trials"]
    code, said = refused(*words[:-5], *more, *words[-5:], capsys=capsys)
    assert code == 2
    assert says in said


def test_a_storage_that_cannot_hold_a_study_is_refused_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In words of one line, with the exit code of what is wrong; nothing is played, made or written to."""
    (tmp_path / "file").write_text("notes")
    with closing(sqlite3.connect(tmp_path / "other.db")) as base:
        base.execute("CREATE TABLE recipes (name TEXT)")
    Book(tmp_path, f"sqlite:///{tmp_path}/study.db", "RandomSampler", 2, 0)
    whole = (tmp_path / "study.db").read_bytes()
    (tmp_path / "torn.db").write_bytes(whole[: len(whole) // 2])
    recipe, inside = tiny(tmp_path), f"sqlite:///{tmp_path}"
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for storage, code, says in (
        (f"{inside}/none/study.db", 5, "none is no folder"), (f"{inside}/file/study.db", 5, "file is a file"),
        (inside, 5, "a folder"), (f"{inside}/file", 5, "file is not a database"), (f"{inside}/torn.db", 5, "torn.db: "),
        (f"{inside}/other.db", 5, "it holds other tables than a study"), ("sqlite:///:memory:", 2, "Allowed: journal"),
        (f"{inside}/study.db?mode=ro", 2, "Allowed: journal"), ("postgresql://me@here/db", 2, "Allowed: journal"),
    ):  # fmt: skip
        found, said = refused(*arguments(recipe, tmp_path / "out", "--storage", storage), capsys=capsys)
        assert (found, says in said) == (code, True), said
        assert not (tmp_path / "out").exists()
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}


def test_a_search_whose_study_lies_in_its_own_folder_goes_on_after_a_death_before_its_first_line(
    tmp_path: Path,
) -> None:
    database = f"sqlite:///{tmp_path}/out/mine.db"
    refuse_unfit(database, tmp_path / "out")  # the folder is not there yet
    (tmp_path / "out").mkdir()
    Book(tmp_path / "out", database, "RandomSampler", 2, 0)
    with pytest.raises(InputError, match="no student of the search is as fast"):  # asked last of all
        verbs.search(tiny(tmp_path), out=tmp_path / "out", storage=database, max_latency="1ns", trials=1)


def test_another_search_and_more_trials_after_the_proof_are_refused(whole: Path) -> None:
    recipe, options = whole.parent / "tiny.yaml", arguments(Path(), Path())[-4:]
    with pytest.raises(StorageError, match=r"recipe\.seed differs"):
        verbs.search(recipe, out=whole, trials=4, seed=1, options=options)
    with pytest.raises(StorageError, match=r"search\.sampler differs"):
        verbs.search(recipe, out=whole, trials=4, sampler="RandomSampler", options=options)
    with pytest.raises(StorageError, match="a second choice at the same alpha"):
        verbs.search(recipe, out=whole, trials=6, options=options)


def test_a_foreign_folder_and_a_lost_study_are_refused(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match="holds no search"):
        verbs.search(TEACHER, "CartPole-v1", tmp_path)
    (tmp_path / "notes.txt").unlink()
    recipe = tiny(tmp_path)
    database = f"sqlite:///{tmp_path}/study.db"
    Book(tmp_path, database, "RandomSampler", 2, 0).ask({})
    with pytest.raises(StorageError, match="is not the one of"):
        verbs.search(recipe, out=tmp_path / "out", storage=database, trials=2, options=arguments(Path(), Path())[-4:])


def test_a_budget_in_the_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="budget of its own"):
        verbs.search(tiny(tmp_path, env_steps=1000), out=tmp_path / "out")


def test_a_read_only_folder_and_a_damaged_journal_are_storage_errors(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "study.journal").write_text('{"op_code": 0\nnot json\n{}\n')
    with pytest.raises(StorageError, match=r"study\.journal is damaged"):
        Book(tmp_path, "journal", "TPESampler", 2, 0)
    with pytest.raises(StorageError, match="cannot be read or written"):
        Book(tmp_path, f"sqlite:///{tmp_path}/no/such/folder/x.db", "TPESampler", 2, 0)


@pytest.mark.parametrize("content", [b"", b"{not json\n", b"[1]\n", b"{}\n", b"\xff\xfe\n"])
@pytest.mark.parametrize(
    "name", ["search.json", "front.json", "passes/0000/pass.json", "passes/0000/result.json", "study.journal", "teacher/run.json"]
)  # fmt: skip
def test_damage_is_told_in_one_line(
    name: str, content: bytes, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files cut short, files of other kinds and JSON of another shape: exit code 5, never a trace, nothing mended in silence."""
    shutil.copytree(whole, tmp_path / "out")
    if name != "front.json":
        (tmp_path / "out" / "front.json").unlink()
    (tmp_path / "out" / name).write_bytes(content)
    code, said = refused(*arguments(whole.parent / "tiny.yaml", tmp_path / "out"), capsys=capsys)
    assert code == 5, said
    assert "is damaged" in said or "differ" in said or "is not the one of" in said


def test_without_optuna_the_line_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r'pip install "limbeck\[search\]"'):
        Book(tmp_path, "journal", "TPESampler", 2, 0)


@pytest.mark.parametrize("sampler", ["NSGAIISampler", pytest.param("RandomSampler", marks=pytest.mark.slow)])
def test_other_samplers_and_sqlite(sampler: str, tmp_path: Path) -> None:
    result = verbs.search(
        tiny(tmp_path), out=tmp_path / "out", trials=4, sampler=sampler, storage=f"sqlite:///{tmp_path}/study.db",
        options=arguments(Path(), Path())[-4:],
    )  # fmt: skip
    assert result.trained == 4
    assert result.sampler == sampler
    assert not (tmp_path / "out" / "study.journal").exists()


@pytest.mark.slow
def test_cartpole_is_found_within_300_bytes(tmp_path: Path) -> None:
    """The real teacher, the default stages: the front's smallest member has 500 of 500 and is proved."""
    result = verbs.search(
        TEACHER, "CartPole-v1", tmp_path / "out", max_bytes=300, trials=8, options=["search.population=4"]
    )
    assert all(row.size_bytes <= 300 for row in result.front)
    assert result.front[0].verdict == "proved"
    assert result.front[0].mean_return > 475  # the task's own threshold
    assert (tmp_path / "out" / "final" / "report.html").is_file()
