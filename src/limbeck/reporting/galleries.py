"""The disagreement gallery: states where a student and its teacher want different things, as pictures or as numbers."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck import storage
from limbeck.contracts import Disagreement, RunResult
from limbeck.errors import StorageError
from limbeck.reporting import naming, words
from limbeck.reporting.evidence import within
from limbeck.reporting.reading import build

FOLDER = "gallery"
LARGEST_PICTURE, LARGEST_GALLERY = 200_000, 1_500_000  # bytes that are put into the page, of one picture and of all
MOST_NUMBERS = 12  # of an observation that are told
TYPES = {".jpg": "image/jpeg", ".png": "image/png"}


@dataclass(frozen=True)
class Kept:
    """The observation of one shown state."""

    number: int
    seed: int
    step: int
    size: int  # of the flat observation
    numbers: Sequence[float]  # its first ones
    picture: str


@dataclass(frozen=True)
class Told:
    """What the search for disagreements went through: gallery/MEMBER.json of a run."""

    member: str
    episodes: int
    states: int
    different: int  # states with another action than the teacher's
    unit: str
    reason: str  # why there are no pictures
    observations: Sequence[Kept]


def galleries(result: RunResult, folder: Path) -> list[dict[str, Any]]:
    """One entry per member that was looked at: a sentence, and its states, costliest first."""
    found, room = [], LARGEST_GALLERY
    for member in result.members:
        told = _told(folder, member.name)
        if not member.disagreements and told is None:
            continue
        kept = {} if told is None else {(k.seed, k.step): k for k in told.observations}
        rows = []
        for one in member.disagreements:
            picture = _picture(folder, one.picture, room)
            room -= len(picture)
            rows.append(_state(result, one, kept.get((one.seed, one.step)), picture))
        reason = "" if told is None or any(row["picture"] for row in rows) else words.public(told.reason)
        found.append({"name": words.public(member.name, 60), "sentence": _sentence(told), "rows": rows, "reason": reason})  # fmt: skip
    return found


def _told(folder: Path, name: str) -> Told | None:
    path = within(folder, f"{FOLDER}/{name}.json")
    if path is None:
        return None
    try:
        told: Told = build(Told, storage.read_json(path), FOLDER)
    except (TypeError, ValueError) as error:
        raise StorageError(f"{path} is damaged: {error}. Remove it, or restore it from a copy.") from error
    return told


def _sentence(told: Told | None) -> str:
    if told is None:
        return ""
    share = words.percent(told.different / told.states) if told.states else words.NOTHING
    where = f"{words.count(told.states)} states of {words.plural(told.episodes, 'episode')} of its own"
    if not told.different:
        return f"In all {where} it took the teacher's action."
    return f"In {words.count(told.different)} of {where} ({share}) it took another action than the teacher would have."


def _state(result: RunResult, one: Disagreement, kept: Kept | None, picture: str) -> dict[str, Any]:
    teacher, student = (
        words.public(naming.action_name(result.task, a), 60) for a in (one.teacher_action, one.student_action)
    )
    return {
        "picture": picture, "teacher": teacher, "student": student, "cost": _cost(one),
        "step": one.step, "seed": one.seed, "numbers": [] if kept is None else _numbers(result, kept),
        "more": 0 if kept is None else max(kept.size - MOST_NUMBERS, 0),
        "alt": f"Step {one.step} of seed {one.seed}: the teacher wants {teacher}, the student {student}",
    }  # fmt: skip


def _cost(one: Disagreement) -> str:
    """
    >>> _cost(Disagreement(1, 2, "0", "1", 3.25, "return (fitted)")), _cost(Disagreement(1, 2, "0", "1", 3.25, "nats"))
    ('costs 3.25 of return (fitted)', '3.25 nats apart')
    """
    number, unit = words.number(one.cost), words.public(one.unit, 80)
    if unit.startswith("return"):
        return f"costs {number} of {unit}"
    return (
        f"{words.percent(one.cost)} of the action's range apart"
        if unit.startswith("share")
        else f"{number} {unit} apart"
    )


def _numbers(result: RunResult, kept: Kept) -> list[tuple[str, str]]:
    names = naming.observation_names(result.task, kept.size)
    return [(name, words.number(v)) for name, v in zip(names, kept.numbers[:MOST_NUMBERS], strict=False)]


def _picture(folder: Path, name: str, room: int) -> str:
    """A picture of the run as a data URI; "" where there is none, or where the page would become too large."""
    path = within(folder, name) if name else None
    kind = TYPES.get("" if path is None else path.suffix)
    if path is None or kind is None or path.stat().st_size > min(LARGEST_PICTURE, room):
        return ""
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
