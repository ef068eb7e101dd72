"""Stable-Baselines3 and sb3-contrib zips; the reading is in `teachers.sb3`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from limbeck.contracts import Teacher, TeacherInfo
from limbeck.errors import InputError
from limbeck.teachers import files, normaliser, sb3
from limbeck.teachers.files import File, Given, info, rebuilt, shape_facts
from limbeck.teachers.sb3 import naming
from limbeck.teachers.sb3.policy import Statistics

SUFFIXES = (".zip",)


def recognises(file: File) -> bool:
    return file.archive is not None and sb3.is_sb3(file.archive)


def load(file: File, given: Given) -> Teacher:
    given.refuse(file, "kind", "architecture", "trust")
    assert file.archive is not None
    return with_statistics(sb3.read(file.archive), file, given, "sb3")


def with_statistics(saved: sb3.Saved, file: File, given: Given, format_: str) -> Teacher:
    """The policy of a zip, or of its bare weights, with the VecNormalize file that goes with it."""
    path = Path(given.normaliser) if given.normaliser is not None else normaliser.beside(file.path)
    statistics = files.read(path) if path is not None else None
    found = sb3.rebuild(
        saved,
        given.spec or sb3.spec_of(saved),
        Statistics(statistics.content, statistics.name) if statistics else None,
        given.view,
    )
    facts = sb3.facts(saved) | ({"normaliser_sha256": statistics.sha256} if statistics else {})
    about = info(file, format_, sb3.algorithm(saved), facts, (*saved.unread, *found.unread), found.notes)
    return replace(rebuilt(found.drawn, about), critic=found.critic)


def inspect(file: File) -> TeacherInfo:
    assert file.archive is not None
    return about(sb3.read(file.archive), file, "sb3")


def about(saved: sb3.Saved, file: File, format_: str) -> TeacherInfo:
    """What the file states, and its shape where that needs no environment."""
    facts = sb3.facts(saved)
    notes: tuple[str, ...]
    try:
        drawn, notes, _ = sb3.policy(saved, sb3.spec_of(saved), None)
        facts |= shape_facts(drawn)
        bare = info(file, format_, sb3.algorithm(saved), facts)
        facts["features"] = ", ".join([str(facts["features"]), *naming.aliases(bare, drawn)])
    except InputError as error:
        notes = (f"not rebuilt without an environment: {error}",)
    return info(file, format_, sb3.algorithm(saved), facts, saved.unread, notes)
