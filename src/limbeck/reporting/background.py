"""What stands behind a result: the teacher, the bill, the video, and how to run it again."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck import storage
from limbeck.contracts import Evaluation, RunResult
from limbeck.reporting import evidence, words

VIDEO, RECIPE, IDENTITY = "video.mp4", "recipe.yaml", "run.json"
LARGEST_VIDEO = 4_000_000  # bytes; with it the page stays below 6 MB
STAGES = (
    ("verify_steps", "verifying the teacher, random play"), ("collection_steps", "collecting"), ("race_steps", "racing"),
    ("polish_steps", "polishing"), ("proof_steps", "proving"), ("critic_steps", "measuring the fitted critic"),
    ("stress_steps", "playing under disturbances"),
    ("other_steps", "golden sequences, video, gallery"),
)  # fmt: skip


def teacher(result: RunResult) -> dict[str, Any]:
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


def scores(result: RunResult) -> list[dict[str, Any]]:
    """Accuracy and macro-F1 on a labelled set: one row per policy, none for other tasks."""
    rows = []
    for name, rates in result.scores.items():
        told = {key: f"{100 * r.value:.1f} % ({100 * r.low:.1f} to {100 * r.high:.1f})" for key, r in rates.items()}
        several = rates["exact"].value != rates["accuracy"].value
        rows.append({"name": words.public(name, 60), "rows": rates["accuracy"].rows, "several": several, **told})
    return rows


def bill(result: RunResult) -> dict[str, Any]:
    bill, total = result.bill, max(result.bill.env_steps, 1)
    idle = {"critic_steps": not bill.critic_fits, "stress_steps": not bill.stress_steps}
    told = [(name, label) for name, label in STAGES if not idle.get(name, False)]
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


def video(folder: Path) -> dict[str, Any]:
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


def reproduce(result: RunResult, folder: Path) -> dict[str, Any]:
    recipe = folder / RECIPE
    lines = recipe.read_text(errors="replace").splitlines() if recipe.is_file() else []
    seed = storage.read_json(folder / IDENTITY).get("seed") if (folder / IDENTITY).is_file() else None
    streams = sorted({p.seed_stream for m in result.members if (p := m.proof) is not None})
    return {
        "command": words.public(result.command, 4000),
        "recipe": "\n".join(words.public(line, 2000) for line in lines),
        "versions": _pairs(result.versions),
        "machine": _pairs(result.machine),
        "streams": [words.public(s) for s in streams],
        "seed": seed if isinstance(seed, int) else words.NOTHING,
        "artifacts": _shipped(result, folder),
    }


def _shipped(result: RunResult, folder: Path) -> list[tuple[str, str]]:
    """(member and file, SHA-256) of every artefact's own files, as their manifests state them."""
    found = []
    for member in result.members:
        path = evidence.within(folder, f"artifacts/{member.name}/{storage.MANIFEST}")
        listed = {} if path is None else storage.read_json(path)
        listed = listed.get("files", listed) if isinstance(listed, dict) else {}
        for artifact in member.artifacts:
            for file in artifact.files:
                digest = listed.get(f"{artifact.target}/{file}")
                if isinstance(digest, str):
                    found.append(
                        (words.public(f"{member.name} {artifact.target}/{file}", 120), words.public(digest, 80))
                    )
    return found


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    plain = storage.plain(values)
    return [
        (words.public(k, 60), words.public(json.dumps(v) if isinstance(v, (dict, list)) else v))
        for k, v in plain.items()
    ]
