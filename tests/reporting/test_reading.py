"""result.json and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import reporting_samples as samples

from limbeck import storage
from limbeck.reporting import load_result
from limbeck.reporting.reading import build


@pytest.mark.parametrize("told", [samples.result(), samples.partly(), samples.hostile(), samples.empty()])
def test_a_stored_result_reads_back_the_same(tmp_path: Path, told: object) -> None:
    storage.write_json(tmp_path / "result.json", told)
    assert storage.plain(load_result(tmp_path)) == storage.plain(told)


def test_types_are_those_of_the_records(tmp_path: Path) -> None:
    whole = samples.result()
    blind = replace(whole.members[0], proof=None)
    storage.write_json(tmp_path / "result.json", replace(whole, members=[blind, *whole.members[1:]]))
    read = load_result(tmp_path)
    assert read.members[0].proof is None
    assert read.members[1].proof == whole.members[1].proof
    assert read.members[1].artifacts == whole.members[1].artifacts
    assert read.bill == whole.bill


def test_fields_of_a_newer_version_are_left_aside(tmp_path: Path) -> None:
    data = {**storage.plain(samples.result()), "from_the_future": 1}
    storage.write_json(tmp_path / "result.json", data)
    assert load_result(tmp_path).task == "LunarLander-v3"


def test_a_type_that_is_not_read_is_refused() -> None:
    with pytest.raises(TypeError, match="not read"):
        build(set[int], [1], "here")
