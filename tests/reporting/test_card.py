"""Model cards: read by the hub's own loader, right in their numbers, and unmoved by hostile names."""

from __future__ import annotations

import doctest
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reporting_samples as samples
import yaml

from limbeck.reporting import card


def front_matter(text: str) -> dict[str, object]:
    opening, block, _ = text.split("---\n", 2)
    assert opening == ""
    values: dict[str, object] = yaml.safe_load(block)
    return values


def test_examples_of_the_card() -> None:
    assert doctest.testmod(card).failed == 0


def test_the_hub_reads_what_the_proof_measured(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="needs limbeck[hub]")
    card.write_cards(tmp_path, samples.partly())
    read = hub.ModelCard.load(tmp_path / "README.md").data
    assert read.library_name == "limbeck"
    assert "reinforcement-learning" in read.tags
    member = samples.partly().members[2]  # the smallest that is proved: the hub reads one model of a card
    assert member.proof is not None
    assert read.model_name == member.name
    rewards = [r for r in read.eval_results if r.metric_type == "mean_reward"]
    assert len(rewards) == 1
    returns = np.asarray(member.proof.student_returns)
    assert rewards[0].metric_value == f"{returns.mean():.2f} +/- {returns.std(ddof=1):.2f}"
    assert rewards[0].dataset_name == "LunarLander-v3"
    assert rewards[0].metric_args["low"] < returns.mean() < rewards[0].metric_args["high"]
    kept = next(r for r in read.eval_results if r.metric_type == "retention")
    assert kept.metric_value == pytest.approx(member.proof.retention, abs=1e-4)
    assert kept.metric_args["verdict"] == "proved"


def test_every_student_has_its_own_card(tmp_path: Path) -> None:
    told = samples.rich()
    samples.write_rich(tmp_path, told)
    card.write_cards(tmp_path, told)
    cards = sorted((tmp_path / "students").glob("*/README.md"))
    assert [path.parent.name for path in cards] == ["tree:leaves=4-s0"]  # the one that has a policy file here
    text = cards[0].read_text()
    values = front_matter(text)
    assert [entry["name"] for entry in values["model-index"]] == ["tree:leaves=4-s0"]
    assert "\n    if x[4] <= 0.1 then action 0 else action 1\n" in text
    assert "Proved to keep at least 95 %" in text


def test_a_run_in_which_nothing_was_played_claims_nothing(tmp_path: Path) -> None:
    card.write_cards(tmp_path, samples.empty())
    values = front_matter((tmp_path / "README.md").read_text())
    assert "model-index" not in values
    assert "Nothing is proved" in (tmp_path / "README.md").read_text()


def test_hostile_names_end_no_metadata_and_become_no_markup(tmp_path: Path) -> None:
    card.write_cards(tmp_path, samples.hostile())
    text = (tmp_path / "README.md").read_text()
    values = front_matter(text)
    assert values["tags"][-1] == samples.HOSTILE[0]
    (entry,) = values["model-index"]
    assert entry["name"] in samples.HOSTILE
    prose = "".join(line for line in text.split("---\n", 2)[2].splitlines() if not line.startswith("    "))
    assert not set("<>*[]{}$&\\") & set(prose)
    assert "\u202e" not in text
    assert "\x1b" not in text


def test_numbers_that_are_none_are_left_out() -> None:
    whole = samples.result()
    member = whole.members[0]
    assert member.proof is not None
    odd = replace(member, proof=replace(member.proof, retention=float("nan"), retention_low=float("nan")))
    found = card.metadata(whole, [odd])["model-index"][0]["results"][0]["metrics"]
    assert [m["type"] for m in found] == ["mean_reward"]
