"""What a result says, in words and numbers: shared by the page, the terminal table and the figures."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from limbeck import seeding
from limbeck.contracts import NO_ENVIRONMENT, NO_PLAYER, MemberReport, Proof, RunResult, confidence
from limbeck.errors import printable

NOTHING = "–"
RESAMPLES = 2000
_HOME = re.compile(r"(?<![\w.~])(?:/home|/Users|[A-Za-z]:\\Users)[/\\][^/\\\s'\"]+")


# ---------------------------------------------------------------- the headline


def headline(result: RunResult) -> str:
    """One sentence that says what is proved, or honestly that nothing is."""
    task = public(result.task, 60)
    if smallest := smallest_proved(result):
        member, proof = smallest
        return (
            f"The {count(member.parameters)}-number student {public(member.name, 60)} {claim(proof.retain, 'keeps', 'is')} "
            f"on {task}: proved with {confidence(proof.alpha)} confidence over {plural(proof.episodes, 'episode')}."
        )
    if best := closest(result):
        member, proof = best
        if proof.reason.startswith((NO_ENVIRONMENT, NO_PLAYER)):
            return (
                f"Nothing is proved on {task}: {public(proof.reason.partition(';')[0], 200)}. The closest student, "
                f"{public(member.name, 60)}, kept {percent(proof.retention)} in {plural(proof.episodes, 'held-out episode')}."
            )
        tested = len(_proofs(result))
        who = (
            "the one student tested was not shown" if tested == 1 else f"none of the {tested} students tested was shown"
        )
        return (
            f"Nothing is proved on {task}: {who} to {claim(result.retain, 'keep', 'be')}. The closest, {public(member.name, 60)}, "
            f"kept {percent(proof.retention)} in {plural(proof.episodes, 'episode')} (lower bound {percent_down(proof.retention_low)})."
        )
    if result.members:
        return f"Nothing is proved on {task}: {plural(len(result.members), 'student')} trained, no proof played."
    return f"Nothing is proved on {task}: no student was finished."


def claim(retain: float, keeps: str = "keeps", is_: str = "is") -> str:
    """What is proved at that retention. At 1 random play drops out: the student's mean is above the teacher's.

    >>> claim(0.95), claim(1.0), claim(1.1, "keep", "be")
    ('keeps at least 95 % of the teacher', 'is better than the teacher', 'be better than the teacher by at least 10 % of its gain over random play')
    """
    if retain < 1:
        return f"{keeps} at least {percent(retain)} of the teacher"
    gain = f" by at least {percent(retain - 1)} of its gain over random play" if retain > 1 else ""
    return f"{is_} better than the teacher{gain}"


def family(result: RunResult) -> str:
    """The error probability of all claims of a family with compressed members together, "" for others."""
    most = family_error(result)
    if most is None:
        return ""
    return f"One or more claims of the family are false with probability at most {percent_up(most)}."


def family_error(result: RunResult) -> float | None:
    """Its bound; None without compressed members, or where nothing was tested. Results that were written without it
    tell it by what their first plain member was tested at: runs of before gave each sequence all of alpha."""
    made = sum(bool(member.lineage) for member in result.members)
    first = next((m.proof for m in result.members if not m.lineage), None)
    if not made or first is None or first.reason.startswith((NO_ENVIRONMENT, NO_PLAYER)):
        return None
    return result.family if result.family is not None else min((made + 1) * first.alpha, 1.0)


def smallest_proved(result: RunResult) -> tuple[MemberReport, Proof] | None:
    """The proved member with the fewest numbers, then the fewest bytes."""
    proved = [pair for pair in _proofs(result) if pair[1].verdict == "proved"]
    return min(proved, key=lambda pair: (pair[0].parameters, pair[0].size_bytes), default=None)


def closest(result: RunResult) -> tuple[MemberReport, Proof] | None:
    """The member with the best lower bound among those that played a proof."""
    return max(_proofs(result), key=lambda p: (_or_worst(p[1].retention_low), _or_worst(p[1].retention)), default=None)


def _proofs(result: RunResult) -> list[tuple[MemberReport, Proof]]:
    return [(member, member.proof) for member in result.members if member.proof is not None]


def _or_worst(share: float) -> float:
    return share if math.isfinite(share) else -math.inf


def verdict(member: MemberReport) -> str:
    """`proved (74)`: the verdict and its episodes."""
    return "not played" if member.proof is None else f"{member.proof.verdict} ({count(member.proof.episodes)})"


# ---------------------------------------------------------------- text that others will read


def public(text: object, limit: int = 400) -> str:
    """`text` safe to show to others: control characters escaped, home folders shortened to ~, long text cut."""
    return printable(without_home(str(text)), limit)


def without_home(text: str) -> str:
    """`text` with the home folder, and so the user's name, replaced by ~.

    >>> without_home("/home/ada/teacher.zip")
    '~/teacher.zip'
    """
    home = re.escape(str(Path.home()).rstrip("/") or "\0")  # a home of "/" names nobody
    return _HOME.sub("~", re.sub(home + r"(?![\w.-])", "~", text))


# ---------------------------------------------------------------- numbers


def count(n: int) -> str:
    return f"{n:,}"


def plural(n: int, noun: str) -> str:
    """
    >>> plural(1, "episode"), plural(1200, "episode")
    ('1 episode', '1,200 episodes')
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def percent(share: float) -> str:
    """
    >>> percent(0.95), percent(0.995), percent(1.0321), percent(float("nan"))
    ('95 %', '99.5 %', '103.2 %', '–')
    """
    return f"{_trim(f'{100 * share:.1f}')} %" if math.isfinite(share) else NOTHING


def percent_down(share: float) -> str:
    """A lower bound: rounded down, so that the text never claims more than was shown.

    >>> percent_down(0.9499)
    '94.9 %'
    """
    return percent(math.floor(1000 * share + 1e-9) / 1000) if math.isfinite(share) else NOTHING


def percent_up(share: float) -> str:
    """A bound of an error: rounded up.

    >>> percent_up(0.05), percent_up(0.1501), percent_up(3 * 0.05)
    ('5 %', '15.1 %', '15 %')
    """
    return percent(math.ceil(1000 * share - 1e-9) / 1000)


def number(value: float) -> str:
    """
    >>> number(268.4), number(0.98764), number(-3200.0)
    ('268.4', '0.988', '-3,200')
    """
    if not math.isfinite(value):
        return NOTHING
    size = abs(value)
    return f"{value:,.0f}" if size >= 1000 else _trim(f"{value:.1f}" if size >= 10 else f"{value:.3g}")


def size(n: float) -> str:
    """
    >>> size(340), size(20_786), size(612_000_000)
    ('340 B', '20.8 kB', '612 MB')
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= factor:
            return f"{n / factor:.{1 if n < 100 * factor else 0}f} {unit}"
    return f"{n:.0f} B"


def duration(seconds: float) -> str:
    """
    >>> duration(4.1e-8), duration(1.41e-5), duration(0.25), duration(51.2), duration(4000)
    ('41 ns', '14.1 µs', '250 ms', '51.2 s', '1 h 6 min')
    """
    if not math.isfinite(seconds):
        return NOTHING
    if seconds <= 0:
        return "0 s"
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
    if seconds >= 120:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= factor:
            return f"{_trim(f'{seconds / factor:.3g}' if seconds < 100 * factor else f'{seconds / factor:.0f}')} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def unbroken(text: str) -> str:
    """`text` for people: a number and its percent sign stay on one line."""
    return text.replace(" %", "\u00a0%")


def _trim(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


# ---------------------------------------------------------------- statistics for display


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean with its 95 % interval, bootstrap over episodes (2,000 resamples, fixed stream); NaN where there is nothing."""
    data = np.asarray([v for v in values if math.isfinite(v)])
    if not data.size:
        return math.nan, math.nan, math.nan
    rng = seeding.generator(0, "proof", data.size)
    means = data[rng.integers(data.size, size=(RESAMPLES, data.size))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(data.mean()), float(low), float(high)


def interval(mean: float, low: float, high: float) -> str:
    """
    >>> interval(268.4, 262.0, 273.1)
    '268.4 [262, 273.1]'
    """
    if not math.isfinite(mean):
        return NOTHING
    return (
        number(mean)
        if not (math.isfinite(low) and math.isfinite(high))
        else f"{number(mean)} [{number(low)}, {number(high)}]"
    )
