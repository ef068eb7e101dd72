"""One offline HTML page from a run folder: nothing is loaded from anywhere, no script runs, every name is escaped.

The template says what stands where; this file prepares its rows. Names go through words.public (control characters,
home folders) and then through Jinja2's autoescape; only our own figures enter as markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck import storage
from limbeck.contracts import MemberReport, RunResult
from limbeck.errors import InputError, StorageError, printable
from limbeck.reporting import (
    background,
    canvas,
    card,
    curves,
    evidence,
    figures,
    galleries,
    heat,
    members,
    profiles,
    svg,
    table,
    words,
)
from limbeck.reporting.reading import load_result

PAGE = "report.html"
SECTIONS = (
    ("front", "Front"), ("members", "Family"), ("video", "Side by side"), ("verdicts", "Verdicts"),
    ("robustness", "Robustness"), ("gallery", "Disagreements"), ("readable", "Readable"), ("devices", "Devices"),
    ("learning", "Learning"), ("teacher", "Teacher"), ("bill", "Bill"), ("reproduce", "Reproduce"),
)  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """A large number at the top of the page."""

    label: str
    value: str
    note: str = ""


def write(folder: Path) -> Path:
    """Write report.html and the model cards into a run folder that holds result.json; the page's path is returned."""
    path = folder / PAGE
    storage.write_text(path, render(folder))
    card.write_cards(folder, load_result(folder))
    return path


def render(folder: Path) -> str:
    """The page as text."""
    result, metrics = load_result(folder), read_metrics(folder)
    drawings, notice = _draw(result, metrics)
    found = {
        "stressed": evidence.robustness(result),
        "measures": evidence.measures(result),
        "devices": evidence.devices(result),
        "saliency": evidence.saliency(result, folder),
        "looks": heat.maps(result),
        "trees": evidence.trees(result, folder),
        "galleries": galleries.galleries(result, folder),
    }
    return _fill(
        "report.html",
        **found,
        sections=_sections(found),
        result=result,
        title=_title(result),
        headline=words.unbroken(words.headline(result)),
        subline=_subline(result),
        facts=_facts(result),
        members=[members.row(m, i, drawings, folder) for i, m in enumerate(result.members)],
        shared=members.shared(result),
        targets=sorted({t for m in result.members for t in m.latency}),
        drawings=drawings,
        notice=notice,
        unplotted=_unplotted(result, metrics),
        teacher=background.teacher(result),
        scores=background.scores(result),
        bill=background.bill(result),
        video=background.video(folder),
        reproduce=background.reproduce(result, folder),
        light=svg.variables(svg.LIGHT),
        dark=svg.variables(svg.DARK),
    )


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a last line cut by a kill is not a row."""
    try:
        rows = storage.read_metrics(folder)
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{printable(folder / storage.METRICS)} is damaged: {printable(error)}. Remove it, or restore it from a copy."
        ) from error
    return [row for row in rows if isinstance(row, dict)]


def _sections(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(id, name in the navigation) of the sections that the page has."""
    measures = found["measures"]
    some = {
        "robustness": bool(found["stressed"] or measures["tails"].rows),
        "gallery": bool(found["galleries"]),
        "readable": bool(found["trees"] or found["saliency"] or found["looks"] or measures["simplicity"].rows),
        "devices": bool(found["devices"]),
    }
    renamed = {} if found["stressed"] else {"robustness": "Beyond the mean"}
    return [(name, renamed.get(name, label)) for name, label in SECTIONS if some.get(name, True)]


def _fill(template: str, **values: object) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )  # fmt: skip
    environment.filters["public"] = words.public
    environment.filters["target"] = members.target_name
    environment.filters["drawing"] = Markup  # our own figures alone: svg.tidy, trees and evidence escape what they hold
    for filter_ in (
        words.count,
        words.percent,
        words.percent_down,
        words.number,
        words.size,
        words.duration,
        words.plural,
    ):
        environment.filters[filter_.__name__] = filter_
    return environment.get_template(template).render(**values)


# ---------------------------------------------------------------- the top


def _title(result: RunResult) -> str:
    return f"{words.public(result.task, 60)} · Limbeck report"


def _subline(result: RunResult) -> str:
    """What stands behind the headline, in a sentence or two."""
    parts = []
    proved = sum(m.proof is not None and m.proof.verdict == "proved" for m in result.members)
    if proved:
        parts.append(
            f"{proved} of {words.plural(len(result.members), 'student')} in the family {'is' if proved == 1 else 'are'} proved."
        )
    if smallest := words.smallest_proved(result):
        played = members.PLAYERS.get(smallest[1].played_by, words.public(smallest[1].played_by, 30))
        parts.append(f"Every episode of the proof was played by {played}, on the same seeds as the teacher.")
    return " ".join(parts)


def _facts(result: RunResult) -> list[Fact]:
    facts = []
    if result.mode in result.evaluations:
        best = result.evaluations[result.mode]
        facts.append(
            Fact(
                "teacher's return",
                words.number(best.mean),
                f"95 %: {words.number(best.low)} to {words.number(best.high)}, {result.mode}",
            )
        )
    if smallest := words.smallest_proved(result):
        facts += _smallest_facts(smallest[0])
    facts.append(
        Fact(
            "collected",
            f"{words.count(result.bill.collection_steps)} steps",
            f"{words.count(result.bill.env_steps)} environment steps in all",
        )
    )
    facts.append(Fact("time", words.duration(result.bill.seconds), "all stages"))
    return facts


def _smallest_facts(member: MemberReport) -> list[Fact]:
    cost = f"{words.size(member.size_bytes)}, {words.count(member.multiply_adds)} multiply-adds"
    facts = [Fact("smallest proved", f"{words.count(member.parameters)} numbers", cost)]
    if target := table.fastest_target([member]):
        measured = member.latency[target]
        note = f"in {members.target_name(target)}; p99 {words.duration(measured.p99_seconds)}"
        facts.append(Fact("one step", words.duration(measured.p50_seconds), note))
    return facts


def _unplotted(result: RunResult, metrics: Sequence[canvas.Row]) -> list[str]:
    raced = {r.get("member") for r in metrics if r.get("stage") == "race"}
    return [words.public(m.name, 60) for m in result.members if m.proof is None and m.name not in raced]


# ---------------------------------------------------------------- figures


def _draw(result: RunResult, metrics: Sequence[canvas.Row]) -> tuple[dict[str, str], str]:
    """All figures by name, or none of them and the line that installs what they need."""
    try:
        canvas.require()
    except InputError as error:
        return {}, str(error)
    drawings = {
        "size": figures.front_by_size(result, metrics) if result.members else "",
        "latency": figures.front_by_latency(result, metrics),
        "loss": curves.loss_curves(metrics),
        "race": curves.race_curves(result, metrics),
        "polish": curves.polish_curves(result, metrics),
        "profile": profiles.profile(result),
    }
    for index, member in enumerate(result.members):
        if member.proof is not None and member.proof.episodes:
            drawings[f"strip{index}"] = figures.episode_strip(member.proof, f"strip{index}")
    return {name: drawing for name, drawing in drawings.items() if drawing}, ""
