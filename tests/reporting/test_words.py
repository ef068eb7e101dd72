"""Headlines and numbers."""

from __future__ import annotations

import doctest
import io
import math
from dataclasses import replace

import pytest
import reporting_samples as samples
from rich.console import Console

from limbeck.contracts import results
from limbeck.reporting import canvas, card, headline, lettering, members, print_table, reading, words


@pytest.mark.parametrize("module", [words, reading, lettering, canvas, results])
def test_examples(module: object) -> None:
    assert doctest.testmod(module).failed == 0


def test_headline_names_the_smallest_proved_student() -> None:
    assert headline(samples.result()) == (
        "The 36-number student linear-s1 keeps at least 95 % of the teacher on LunarLander-v3: "
        "proved with 95 % confidence over 291 episodes."
    )


def test_headline_takes_share_and_confidence_from_the_proof() -> None:
    whole = samples.result()
    proof = samples.proof("linear-s1", 1.0, 412, retain=0.99)
    told = replace(whole, members=[replace(whole.members[-1], proof=replace(proof, alpha=0.01))])
    assert "at least 99 % of the teacher" in headline(told)
    assert "99 % confidence over 412 episodes" in headline(told)


def test_a_claim_of_superiority_is_called_by_its_name() -> None:
    whole = samples.result()
    better = replace(
        whole, members=[replace(whole.members[-1], proof=samples.proof("linear-s1", 1.02, 412, retain=1.0))]
    )
    assert headline(better).startswith(
        "The 36-number student linear-s1 is better than the teacher on LunarLander-v3: proved"
    )
    by = replace(whole, members=[replace(whole.members[-1], proof=samples.proof("linear-s1", 1.2, 412, retain=1.1))])
    assert "is better than the teacher by at least 10 % of its gain over random play" in headline(by)
    none = replace(samples.nothing_proved(), retain=1.0)
    assert "the one student tested was not shown to be better than the teacher" in headline(none)
    assert "Proved to be better than the teacher, with 95 % confidence" in card._verdict(better, better.members[0])


def test_a_family_s_error_is_told_on_the_terminal_and_on_every_card() -> None:
    """Shared, alpha in all; a run that was begun with alpha for each errs with 3 x 5 %, written down or not."""
    whole = samples.result()
    first, *rest = whole.members[:3]
    compressed = replace(whole, members=[first, *(replace(m, lineage=(first.name, "prune 0.5")) for m in rest)])
    for bound, told in ((0.05, "at most 5 %."), (0.15000000000000002, "at most 15 %."), (None, "at most 15 %.")):
        family = replace(compressed, family=bound)
        stream = io.StringIO()
        print_table(family, Console(file=stream, width=120))
        said = f"One or more claims of the family are false with probability {told}"
        for text in (
            stream.getvalue().replace("\u00a0", " "),
            card.run_card(family),
            card.member_card(family, first),
            members.shared(family),
        ):
            assert said in text
    assert "claims of the family" not in card.run_card(replace(whole, family=0.05)), (
        "one sequence: each verdict says it"
    )


def test_headline_of_a_sequence_that_stopped_names_the_last_one_proved() -> None:
    assert headline(samples.partly()).startswith("The 484-number student mlp:16x16-s1 keeps")


def test_headline_is_honest_when_nothing_is_proved() -> None:
    whole = samples.nothing_proved()
    assert headline(whole).startswith("Nothing is proved on LunarLander-v3: the one student tested was not shown")
    unplayed = replace(whole, members=[replace(m, proof=None) for m in whole.members])
    assert headline(unplayed) == "Nothing is proved on LunarLander-v3: 8 students trained, no proof played."
    assert "keeps" not in headline(samples.empty())


def test_closest_survives_bounds_that_are_not_numbers() -> None:
    whole = samples.partly()
    blind = [
        replace(m, proof=m.proof and replace(m.proof, verdict="undecided", retention_low=math.nan))
        for m in whole.members
    ]
    assert "lower bound –" in headline(replace(whole, members=blind))


def test_lower_bounds_are_never_rounded_up() -> None:
    assert words.percent_down(0.94999) == "94.9 %"
    assert words.percent_down(0.95) == "95 %"
    assert words.percent(0.94999) == "95 %"


def test_interval_of_the_mean_covers_it_and_shrinks() -> None:
    mean, low, high = words.mean_interval(tuple(float(i % 10) for i in range(400)))
    assert mean == 4.5
    half = 1.96 * math.sqrt(8.25 / 400)  # the normal interval of the same data
    assert low == pytest.approx(4.5 - half, abs=0.05)
    assert high == pytest.approx(4.5 + half, abs=0.05)
    assert all(math.isnan(v) for v in words.mean_interval(()))


def test_every_size_of_number_has_its_words() -> None:
    assert (
        words.number(math.nan)
        == words.duration(math.inf)
        == words.percent(math.nan)
        == words.interval(math.nan, 0, 0)
        == "–"
    )
    assert words.interval(2.0, math.nan, 3.0) == "2"
    assert [words.duration(s) for s in (0.0, 150.0, 2.5e-3)] == ["0 s", "2 min 30 s", "2.5 ms"]
    assert words.size(2.5e9) == "2.5 GB"


def test_a_home_that_is_the_root_folder_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/")
    assert words.without_home("/data/t.zip") == "/data/t.zip"
