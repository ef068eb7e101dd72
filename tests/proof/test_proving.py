from dataclasses import replace

import numpy as np
import pytest
from proof_cases import BOUNDS, labelled_task, network, right, wrong_above

from limbeck import storage, tasks
from limbeck.contracts import Bounds, Proof
from limbeck.errors import InputError
from limbeck.proof import proving
from limbeck.proof.cache import ReturnCache, proof_seeds
from limbeck.proof.proving import Trial
from limbeck.proof.returns import Triples
from limbeck.reporting.reading import build
from limbeck.settings import ProveSettings

TASK = labelled_task()


def prove(
    student, *, settings=ProveSettings(), bounds=BOUNDS, cache=None, previous=None, task=TASK, teacher=None, **more
):
    given = {"member": "m", "played_by": "numpy", "run_seed": 0, "teacher_mode": "greedy"} | more
    return proving.prove(
        student, teacher or right(task), task, bounds=bounds, settings=settings, cache=cache or ReturnCache(), previous=previous, **given,
    )  # fmt: skip


def test_a_perfect_student_is_proved_at_the_first_crossing():
    found = prove(right(TASK))
    assert found.verdict == "proved"
    assert 100 < found.episodes < 160  # ln 20 / ln(1 + .95 * .05 * mean(1 - R)) = 128 at mean .5
    assert found.log_wealth >= np.log(20)
    before = Trial(BOUNDS, ProveSettings(), 0)
    before.count(
        Triples(*(np.array(c[:-1]) for c in (found.student_returns, found.teacher_returns, found.random_returns)))
    )
    assert before.verdict is None  # one episode earlier it was not
    assert before.log_wealth < np.log(20)
    assert found.seeds == tuple(proof_seeds(0, 0, found.episodes))
    assert found.retention == 1.0
    assert 0.95 <= found.retention_low < 1.0
    assert found.seed_stream == "proof"
    assert "95 %" in found.reason


def test_episodes_beyond_the_crossing_are_billed_but_do_not_count():
    found = prove(right(TASK), settings=ProveSettings(chunk=100))
    assert 100 < found.episodes < 200
    assert found.env_steps == 3 * 200


@pytest.mark.parametrize("chunk", [1, 7, 32, 1000])
def test_verdict_does_not_depend_on_the_chunk(chunk):
    student = wrong_above(TASK, 0.99)
    found = prove(student, settings=ProveSettings(chunk=chunk))
    assert replace(found, env_steps=0) == replace(prove(student), env_steps=0)


def test_a_bad_student_is_given_up_early():
    found = prove(wrong_above(TASK, 0.7))
    assert found.verdict == "not proved"
    assert proving.FUTILITY_EPISODES <= found.episodes < 100
    assert "given up" in found.reason
    assert found.retention < 0.9 > found.retention_low


def test_the_number_of_episodes_is_kept():
    found = prove(right(TASK), settings=ProveSettings(max_episodes=40, chunk=32))
    assert (found.verdict, found.episodes, found.env_steps) == ("not proved", 40, 120)
    assert "most allowed" in found.reason


def test_futility_never_gives_up_what_can_still_be_proved():
    """A perfect student with exactly the episodes it needs."""
    needed = prove(right(TASK)).episodes
    assert prove(right(TASK), settings=ProveSettings(max_episodes=needed)).verdict == "proved"


@pytest.mark.parametrize("first", [1, 33, 60, 100])
def test_continuing_equals_one_long_run(first):
    student, cache = wrong_above(TASK, 0.995), ReturnCache()
    whole = prove(student)
    part = prove(student, settings=ProveSettings(max_episodes=first), cache=cache)
    assert part.verdict == "not proved"
    found = prove(student, cache=cache, previous=part)
    assert replace(found, env_steps=0) == replace(whole, env_steps=0)
    assert found.episodes > part.episodes
    assert found.env_steps > part.env_steps


def test_a_finished_proof_is_not_played_again():
    teacher, student = right(TASK), right(TASK)
    done = prove(student, teacher=teacher)
    student.calls = teacher.calls = 0
    assert prove(student, teacher=teacher, previous=done) == done
    assert student.calls == teacher.calls == 0


def test_another_retention_goes_on_with_the_same_episodes():
    done = prove(right(TASK))
    stronger = prove(right(TASK), previous=done, settings=ProveSettings(retain=0.99, max_episodes=3000))
    assert stronger.verdict == "proved"
    assert stronger.episodes > done.episodes
    assert stronger.student_returns[: done.episodes] == done.student_returns
    assert stronger.retention_low >= 0.99
    fresh = prove(right(TASK), settings=ProveSettings(retain=0.99, max_episodes=3000))
    assert stronger.episodes >= fresh.episodes, "chosen late, it needs the bound that holds for all retentions"
    weaker = prove(right(TASK), previous=done, settings=ProveSettings(retain=0.9))
    assert weaker.verdict == "proved"
    assert weaker.episodes < done.episodes
    assert weaker.chosen_late
    assert prove(right(TASK), previous=weaker, settings=ProveSettings(retain=0.9)).chosen_late, "and stays so"
    assert not prove(right(TASK), previous=done).chosen_late


def test_a_retention_chosen_late_needs_the_bound_for_all_retentions():
    settings = ProveSettings(retain=1.2, max_episodes=3000)  # above every retention that the bound is made for
    rows = Triples(np.full(400, 1.9), np.full(400, 1.0), np.full(400, 0.1))
    bounds = Bounds(0.0, 2.0, "given")
    early, late = Trial(bounds, settings, 0), Trial(bounds, settings, 0, late=True)
    early.count(rows)
    late.count(rows)
    assert early.verdict == "proved"
    assert late.verdict is None
    assert late.log_wealth > np.log(20)
    mild = Trial(bounds, ProveSettings(retain=1.05), 0, late=True)
    mild.count(rows)
    assert mild.verdict == "proved"
    assert mild.proof(TASK, "m", "numpy", 0).retention_low >= 1.05
    assert "all retentions" in mild.reason


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"member": "other"}, "member"), ({"played_by": "c"}, "player"), ({"run_seed": 1}, "seed"),
        ({"bounds": Bounds(-1.0, 1.0, "wider")}, "floor"),
    ],
)  # fmt: skip
def test_another_proof_is_not_continued(change, word):
    part = prove(right(TASK), settings=ProveSettings(max_episodes=10))
    with pytest.raises(InputError, match=word):
        prove(right(TASK), previous=part, **change)


def test_an_episode_outside_the_bounds_leaves_it_undecided():
    low = prove(wrong_above(TASK, 0.95), bounds=Bounds(0.5, 1.0, "given"))
    assert low.verdict == "undecided"
    assert "student returned 0, below the floor 0.5" in low.reason
    assert low.student_returns[-1] == 0.0  # the episode is kept, so continuing stays undecided
    assert prove(wrong_above(TASK, 0.95), bounds=low.bounds, previous=low).verdict == "undecided"
    high = prove(right(TASK), bounds=Bounds(0.0, 0.9, "given"))
    assert (high.verdict, high.episodes) == ("undecided", 1)
    assert "teacher returned 1, above the ceiling 0.9" in high.reason


def test_random_play_outside_the_bounds():
    one, two = np.array([0.5]), np.array([2.0])
    above = Trial(BOUNDS, ProveSettings(), 0)
    above.count(Triples(one, one, two))
    assert above.verdict == "undecided"
    below = Trial(BOUNDS, ProveSettings(), 0)
    below.count(Triples(one, one, -two))  # D does not rest on the random floor for r <= 1
    assert below.verdict is None
    strict = Trial(BOUNDS, ProveSettings(retain=1.05), 0)
    strict.count(Triples(one, one, -two))
    assert strict.verdict == "undecided"


def test_a_student_better_than_its_teacher_may_prove_more_than_all_of_it():
    rng, n = np.random.default_rng(0), 600
    trial = Trial(Bounds(0.0, 2.0, "given"), ProveSettings(retain=1.05), 0)
    trial.count(Triples(1.5 + 0 * rng.random(n), 1.0 + 0 * rng.random(n), 0.2 * rng.random(n)))
    assert trial.verdict == "proved"
    assert trial.proof(TASK, "m", "numpy", 0).retention_low >= 1.05


def test_looks_are_told():
    seen = []
    prove(right(TASK), on_look=lambda episodes, wealth: seen.append((episodes, wealth)))
    assert [n for n, _ in seen[:3]] == [32, 64, 96]
    assert seen[-1][1] >= np.log(20)


def test_members_share_the_teacher_s_and_the_random_episodes():
    cache, good = ReturnCache(), right(TASK)
    big, small = (prove(good, member=name, cache=cache) for name in ("big", "small"))
    assert big.teacher_returns == small.teacher_returns
    assert big.env_steps == 3 * small.env_steps  # the small one only plays itself
    assert small.env_steps == 32 * -(-small.episodes // 32)


def test_confidence_is_told_rounded_down():
    """1 - .1 / 3 is 96.66...: ":g" told it as 96.6667 %."""
    found = prove(right(TASK), settings=ProveSettings(alpha=0.1 / 3))
    assert found.reason.startswith("keeps >= 95 % of the teacher at 96.66 % confidence")


# ---------------------------------------------------------------- a real environment


def test_continuing_in_a_chaotic_environment_is_bit_for_bit():
    task = tasks.resolve("Pendulum-v1")
    student, teacher = network(task, seed=1), network(task, seed=2)
    wide = Bounds(-3000.0, 100.0, "given")
    runs = []
    for cuts, chunk in (((21,), 32), ((5, 21), 3)):
        found, cache = None, ReturnCache()
        for most in cuts:
            found = prove(
                student, teacher=teacher, task=task, bounds=wide, previous=found, cache=cache,
                settings=ProveSettings(max_episodes=most, chunk=chunk),
            )  # fmt: skip
        runs.append(replace(found, env_steps=0, retention=0.0))  # NaN: this teacher is no better than chance
    assert runs[0] == runs[1]
    assert len(set(runs[0].student_returns)) == 21


def test_a_stored_proof_is_continued_from_its_file(tmp_path):
    student = wrong_above(TASK, 0.995)
    part = prove(student, settings=ProveSettings(max_episodes=50))
    storage.write_json(tmp_path / "proof.json", part)
    again = build(Proof, storage.read_json(tmp_path / "proof.json"), "proof")
    assert replace(prove(student, previous=again), env_steps=0) == replace(prove(student), env_steps=0)
