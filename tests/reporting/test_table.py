"""The family on a terminal, wide and narrow."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import reporting_samples as samples
from rich.console import Console

from limbeck.contracts import RunResult
from limbeck.reporting import headline, print_table


def printed(result: RunResult, width: int, colour: bool = False) -> str:
    stream = io.StringIO()
    print_table(
        result, Console(file=stream, width=width, force_terminal=colour, color_system="standard" if colour else None)
    )
    return stream.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_row_fits_and_tells_name_share_and_verdict(width: int) -> None:
    result = samples.partly()
    lines = printed(result, width).splitlines()
    assert max(map(len, lines)) <= width
    for member in result.members:
        row = next(line for line in lines if line.startswith(member.name + " "))
        verdict = "not played" if member.proof is None else f"{member.proof.verdict} ({member.proof.episodes})"
        assert verdict in row
        assert "…" not in row


def test_wide_consoles_get_more_columns_and_narrow_ones_lose_whole_columns() -> None:
    heads = {w: printed(samples.result(), w).splitlines()[0].split("  ") for w in (60, 80, 140)}
    names = {w: [h.strip() for h in head if h.strip()] for w, head in heads.items()}
    assert names[60] == ["student", "numbers", "keeps", "at least", "verdict (episodes)"]
    assert set(names[60]) < set(names[80]) < set(names[140])
    assert {"c p50", "p99", "mult-adds", "return", "size", "polished"} <= set(names[140])


def test_headline_follows_the_table() -> None:
    text = " ".join(printed(samples.result(), 70).split())
    assert text.endswith(headline(samples.result()))
    assert "no student was finished" in " ".join(printed(samples.empty(), 70).split())


def test_small_trees_and_rules_are_written_out_below_the_table() -> None:
    whole = samples.result()
    readable = replace(whole.members[-1], formula="action 1 where x[1] + 0.5*x[2] > 0, else action 0")
    text = printed(replace(whole, members=[*whole.members[:-1], readable]), 60)
    assert max(map(len, text.splitlines())) <= 60
    assert f"{readable.name}: {readable.formula}" in " ".join(text.split()), "brackets are no markup"
    assert " where " not in printed(whole, 60)


def test_control_characters_and_markup_in_names_stay_visible() -> None:
    text = printed(samples.hostile(), 120, colour=True)
    assert "\x1b]0;" not in text
    assert "\x07" not in text
    assert r"\x1b]0;CANARY\x07\x1b" in text
    assert "[red]not markup[/red]" in text


def test_a_member_without_measured_speed_shows_a_dash() -> None:
    whole = samples.result()
    slow = replace(whole, members=[replace(whole.members[0], latency={}), *whole.members[1:]])
    row = next(line for line in printed(slow, 140).splitlines() if line.startswith("mlp:64x64-s1"))
    assert row.count("–") == 2  # p50 and p99
    silent = replace(whole, members=[replace(m, latency={}) for m in whole.members])
    assert "p50" not in printed(silent, 140)
