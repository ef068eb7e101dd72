"""The durable data set: order, histories, damage."""

import numpy as np
import pytest

from limbeck.dataset import history_rows, open_dataset
from limbeck.errors import StorageError


def columns(rows, seed=0):
    rng = np.random.default_rng(seed)
    return {"obs": rng.normal(size=(rows, 3)).astype(np.float32), "first": np.arange(rows) % 4 == 0}


def test_rounds_are_kept_in_order_and_read_again(tmp_path):
    data = open_dataset(tmp_path, "A/b:c")
    for number in range(3):
        data.add(number, columns(5 + number, number), {"driver": "student"})
    again = open_dataset(tmp_path, "A/b:c")
    assert again.rows == data.rows == 18
    assert np.array_equal(again.column("obs"), data.column("obs"))
    assert again.meta[2]["round"] == 2


def test_a_round_out_of_order_is_refused(tmp_path):
    data = open_dataset(tmp_path, "t")
    with pytest.raises(StorageError, match="does not follow"):
        data.add(1, columns(4), {})


def test_forgetting_the_rounds_to_be_played_again(tmp_path):
    data = open_dataset(tmp_path, "t")
    for number in range(3):
        data.add(number, columns(4, number), {})
    data.forget_from(1)
    assert open_dataset(tmp_path, "t").rounds == data.rounds == 1
    data.add(1, columns(4, 9), {})
    assert open_dataset(tmp_path, "t").rows == 8


def test_a_truncated_shard_is_named(tmp_path):
    data = open_dataset(tmp_path, "t")
    data.add(0, columns(50), {})
    path = data.path(0)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(StorageError, match=r"round-00000\.safetensors"):
        open_dataset(tmp_path, "t")


def test_histories_stop_at_episode_starts():
    first = np.array([1, 0, 0, 1, 0, 1], bool)
    assert history_rows(first, 3).tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [3, 3, 3], [3, 3, 4], [5, 5, 5]]
