import pytest
from proof_cases import labelled_task, right

from limbeck import storage
from limbeck.errors import InputError, StorageError
from limbeck.proof.cache import ReturnCache, proof_seeds
from limbeck.seeding import stage_of


def test_each_episode_is_played_once():
    task = labelled_task()
    teacher, cache = right(task), ReturnCache()
    first = cache.returns("teacher greedy", teacher, task, 0, 0, 10, "greedy")
    calls = teacher.calls
    assert cache.returns("teacher greedy", teacher, task, 0, 0, 10, "greedy").tolist() == first.tolist() == [1.0] * 10
    assert teacher.calls == calls
    assert cache.bill() == 10
    cache.returns("teacher greedy", teacher, task, 0, 5, 15, "greedy", "next")
    assert cache.bill("next") == 5  # only the missing ones
    assert cache.bill() == 10


def test_labels_and_run_seeds_are_apart():
    task, cache = labelled_task(), ReturnCache()
    cache.returns("random", None, task, 0, 0, 8, "sampled")
    cache.returns("random", None, task, 1, 0, 8, "sampled")
    cache.returns("teacher greedy", right(task), task, 0, 0, 8, "greedy")
    assert cache.bill() == 24


def test_saved_and_loaded_with_the_bill_of_each_claim(tmp_path):
    task, path = labelled_task(), tmp_path / "proofs" / "returns.json"
    first = ReturnCache(path, "abc").returns("random", None, task, 3, 0, 12, "sampled", "a")
    again = ReturnCache(path, "abc")
    assert again.returns("random", None, task, 3, 0, 12, "sampled", "a").tolist() == first.tolist()
    assert again.bill("a") == 12  # the proof that is killed and played again has the same bill
    assert again.bill("b") == 0


def test_another_teacher_s_file_and_a_damaged_one_are_refused(tmp_path):
    path = tmp_path / "returns.json"
    ReturnCache(path, "abc").returns("random", None, labelled_task(), 0, 0, 2, "sampled")
    with pytest.raises(StorageError, match="another teacher"):
        ReturnCache(path, "xyz")
    with pytest.raises(InputError, match="identity"):
        ReturnCache(path)
    storage.write_json(path, {"played": {"a": {"x": 1}}})
    with pytest.raises(StorageError, match="damaged"):
        ReturnCache(path, "abc")


def test_seeds_continue_and_belong_to_the_proof():
    assert proof_seeds(0, 0, 6)[4:] == proof_seeds(0, 4, 6)
    assert {stage_of(seed) for seed in proof_seeds(0, 0, 6)} == {"proof"}
