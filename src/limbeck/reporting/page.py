"""One offline HTML page from a run folder: nothing is loaded from anywhere, no script runs, every name is escaped.

The template says what stands where; this file prepares its rows. Names go through words.public (control characters,
home folders) and then through Jinja2's autoescape; only our own figures enter as markup.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck import storage
from limbeck.contracts import OWN, Artifact, Evaluation, MemberReport, Proof, RunResult
from limbeck.errors import InputError, StorageError, printable
from limbeck.reporting import canvas, curves, figures, svg, table, words
from limbeck.reporting.reading import load_result

PAGE, VIDEO, RECIPE = "report.html", "video.mp4", "recipe.yaml"
LARGEST_VIDEO = 4_000_000  # bytes; with it the page stays below 6 MB
STAGES = (
    ("verify_steps", "verifying the teacher, random play"), ("collection_steps", "collecting"), ("race_steps", "racing"),
    ("polish_steps", "polishing"), ("proof_steps", "proving"), ("critic_steps", "measuring the fitted critic"),
    ("other_steps", "golden sequences, video"),
)  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """A large number at the top of the page."""

    label: str
    value: str
    note: str = ""


def write(folder: Path) -> Path:
    """Write report.html into a run folder that holds result.json; its path is returned."""
    path = folder / PAGE
    storage.write_text(path, render(folder))
    return path


def render(folder: Path) -> str:
    """The page as text."""
    result, metrics = load_result(folder), read_metrics(folder)
    drawings, notice = _draw(result, metrics)
    return _fill(
        "report.html",
        result=result,
        title=_title(result),
        headline=words.unbroken(words.headline(result)),
        subline=_subline(result),
        facts=_facts(result),
        members=[_member(m, i, drawings, folder) for i, m in enumerate(result.members)],
        targets=sorted({t for m in result.members for t in m.latency}),
        drawings=drawings,
        notice=notice,
        unplotted=_unplotted(result, metrics),
        teacher=_teacher(result),
        scores=_scores(result),
        bill=_bill(result),
        video=_video(folder),
        reproduce=_reproduce(result, folder),
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


def _fill(template: str, **values: object) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )  # fmt: skip
    environment.filters["public"] = words.public
    environment.filters["target"] = target_name
    environment.filters["drawing"] = Markup  # our own figures alone: svg.tidy has checked their elements
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
        played = PLAYERS.get(smallest[1].played_by, words.public(smallest[1].played_by, 30))
        parts.append(f"Every episode of the proof was played by {played}, on the same seeds as the teacher.")
    return " ".join(parts)


TARGETS = {"c": "C", "onnx": "ONNX", "numpy": "numpy"}
PLAYERS = {"c": "the exported C code", "onnx": "the exported ONNX file", "numpy": "the student's weights in numpy"}


def target_name(target: str) -> str:
    return TARGETS.get(target, words.public(target, 20))


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
        note = f"in {target_name(target)}; p99 {words.duration(measured.p99_seconds)}"
        facts.append(Fact("one step", words.duration(measured.p50_seconds), note))
    return facts


# ---------------------------------------------------------------- members and verdicts


def _member(member: MemberReport, index: int, drawings: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """One row of the table and one verdict card."""
    proof = member.proof
    return {
        "report": member,
        "proof": proof,
        "kind": "not played" if proof is None else proof.verdict,
        "verdict": words.verdict(member),
        "return": words.NOTHING if proof is None else words.interval(*words.mean_interval(proof.student_returns)),
        "latency": {t: (latency.p50_seconds, latency.p99_seconds) for t, latency in member.latency.items()},
        "strip": drawings.get(f"strip{index}", ""),
        "facts": [] if proof is None else _proof_facts(proof),
        "artifacts": [_artifact(a, folder) for a in member.artifacts],
        "episodes": "" if proof is None else _episode_lines(proof),
    }


def _proof_facts(proof: Proof) -> list[tuple[str, str]]:
    bounds = proof.bounds
    facts = [
        ("played by", PLAYERS.get(proof.played_by, words.public(proof.played_by, 30))),
        ("kept", f"{words.percent(proof.retention)}, at least {words.percent_down(proof.retention_low)}"),
        ("asked for", f"{words.percent(proof.retain)} at {words.percent(1 - proof.alpha)} confidence"),
        (
            "returns",
            f"student {words.interval(*words.mean_interval(proof.student_returns))}, teacher {words.number(table.mean(proof.teacher_returns))}, random {words.number(table.mean(proof.random_returns))}",
        ),
        (
            "bounds",
            f"floor {words.number(bounds.floor)}, ceiling {words.number(bounds.ceiling)}: {words.public(bounds.source)}",
        ),
        ("evidence", _evidence(proof)),
        ("steps", f"{words.count(proof.env_steps)} environment steps"),
    ]
    return facts + [
        (words.public(k, 40), f"{words.number(v)} on the student's own states{_source(proof, k)}")
        for k, v in proof.fidelity.items()
    ]


def _source(proof: Proof, measure: str) -> str:
    """What a regret is made of; runs of before it was written down have only the teacher's own."""
    source = proof.sources.get(measure, OWN if measure == "regret" else "")
    return f", {words.public(source, 80)}" if source else ""


def _evidence(proof: Proof) -> str:
    """The e-value against its threshold."""
    if not math.isfinite(proof.log_wealth):
        return words.NOTHING
    wealth = (
        f"{math.exp(proof.log_wealth):,.3g}" if proof.log_wealth < 20 else f"10^{proof.log_wealth / math.log(10):.0f}"
    )
    return f"e-value {wealth}; {1 / proof.alpha:,.3g} is needed"


def _artifact(artifact: Artifact, folder: Path) -> dict[str, str]:
    within = artifact.folder.is_relative_to(folder) or artifact.folder.is_relative_to(folder.resolve())
    base = folder if artifact.folder.is_relative_to(folder) else folder.resolve()
    place = str(artifact.folder.relative_to(base)) if within else words.public(artifact.folder)
    return {
        "target": words.public(artifact.target, 40),
        "place": words.public(place),
        "files": ", ".join(words.public(f, 80) for f in artifact.files),
        "size": words.size(artifact.size_bytes),
        "note": words.public(artifact.note),
    }


def _episode_lines(proof: Proof) -> str:
    """Seeds and returns as comma-separated numbers."""
    rows = zip(proof.seeds, proof.student_returns, proof.teacher_returns, proof.random_returns, strict=False)
    return "\n".join(["seed,student,teacher,random", *(f"{seed},{s:.6g},{t:.6g},{r:.6g}" for seed, s, t, r in rows)])


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
    }
    for index, member in enumerate(result.members):
        if member.proof is not None and member.proof.episodes:
            drawings[f"strip{index}"] = figures.episode_strip(member.proof, f"strip{index}")
    return {name: drawing for name, drawing in drawings.items() if drawing}, ""


# ---------------------------------------------------------------- teacher, bill, video, reproduction


def _teacher(result: RunResult) -> dict[str, Any]:
    info = result.teacher
    stated = [
        (words.public(k, 60), words.public(json.dumps(v) if isinstance(v, (dict, list, tuple)) else v))
        for k, v in info.stated.items()
    ]
    return {
        "file": words.public(
            info.path.replace("\\", "/").rsplit("/", 1)[-1]
        ),  # the folders above it are nobody's business
        "info": info,
        "stated": stated,
        "unread": [words.public(u) for u in info.unread],
        "notes": [words.public(n) for n in info.notes],
        "evaluations": [_evaluation(name, e, name == result.mode) for name, e in result.evaluations.items()],
    }


def _evaluation(name: str, evaluation: Evaluation, better: bool) -> dict[str, Any]:
    return {
        "name": "random play" if name == "random" else f"teacher, {words.public(name, 30)}",
        "better": better,
        "mean": words.number(evaluation.mean),
        "interval": f"{words.number(evaluation.low)} to {words.number(evaluation.high)}",
        "episodes": words.count(evaluation.episodes),
        "steps": words.count(evaluation.env_steps),
    }


def _scores(result: RunResult) -> list[dict[str, Any]]:
    """Accuracy and macro-F1 on a labelled set: one row per policy, none for other tasks."""
    rows = []
    for name, rates in result.scores.items():
        told = {key: f"{100 * r.value:.1f} % ({100 * r.low:.1f} to {100 * r.high:.1f})" for key, r in rates.items()}
        several = rates["exact"].value != rates["accuracy"].value
        rows.append({"name": words.public(name, 60), "rows": rates["accuracy"].rows, "several": several, **told})
    return rows


def _bill(result: RunResult) -> dict[str, Any]:
    bill, total = result.bill, max(result.bill.env_steps, 1)
    told = [(name, label) for name, label in STAGES if name != "critic_steps" or bill.critic_fits]
    stages = [(label, getattr(bill, name), 100 * getattr(bill, name) / total) for name, label in told]
    others = [
        ("labels", words.count(bill.teacher_queries), "observations of the data set that the teacher answered"),
        ("gradient steps", words.count(bill.gradient_steps), "optimiser steps times members"),
        *(
            [("critic fits", words.count(bill.critic_fits), "by least squares, times members")]
            if bill.critic_fits
            else []
        ),
        ("wall time", words.duration(bill.seconds), ""),
        ("peak memory", words.size(bill.peak_memory_bytes) if bill.peak_memory_bytes else words.NOTHING, ""),
    ]
    return {"stages": stages, "total": bill.env_steps, "others": others}


def _video(folder: Path) -> dict[str, Any]:
    """The video as a data URI with what it shows, or the reason why there is none."""
    path = folder / VIDEO
    told = storage.read_json(path.with_suffix(".json")) if path.with_suffix(".json").is_file() else {}
    told = told if isinstance(told, dict) else {}
    if not path.is_file():
        return {"uri": "", "reason": words.public(told.get("reason") or "no video was made in this run")}
    if path.stat().st_size > LARGEST_VIDEO:
        return {
            "uri": "",
            "reason": f"{VIDEO} ({words.size(path.stat().st_size)}) is too large for this page: it lies in the run folder",
        }
    content = base64.b64encode(path.read_bytes()).decode()
    return {"uri": f"data:video/mp4;base64,{content}", "reason": "", "caption": _caption(told)}


def _caption(told: Mapping[str, Any]) -> str:
    """One sentence from the side file; its values are data from disk and may be anything."""
    if not isinstance(told.get("seed"), int):
        return "The teacher (left) and the student (right) on the same seed."
    halves = []
    for who, name in (("teacher", "The teacher"), ("student", words.public(told.get("student", "the student"), 60))):
        reached, steps = told.get(f"{who}_return"), told.get(f"{who}_steps")
        state = "" if told.get(f"{who}_ended") else " and still going"
        if isinstance(reached, (int, float)) and isinstance(steps, int):
            halves.append(f"{name}: {words.number(float(reached))} after {words.plural(steps, 'step')}{state}.")
    return " ".join([*halves, f"Both start from seed {told['seed']}; one episode shows style, it proves nothing."])


def _reproduce(result: RunResult, folder: Path) -> dict[str, Any]:
    recipe = folder / RECIPE
    lines = recipe.read_text(errors="replace").splitlines() if recipe.is_file() else []
    streams = sorted({p.seed_stream for m in result.members if (p := m.proof) is not None})
    return {
        "command": words.public(result.command, 4000),
        "recipe": "\n".join(words.public(line, 2000) for line in lines),
        "versions": _pairs(result.versions),
        "machine": _pairs(result.machine),
        "streams": [words.public(s) for s in streams],
    }


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    plain = storage.plain(values)
    return [
        (words.public(k, 60), words.public(json.dumps(v) if isinstance(v, (dict, list)) else v))
        for k, v in plain.items()
    ]
