"""What a run measured beside the verdicts: robustness, tails, simplicity, lineage, devices, saliency, and trees as trees.

Every function gives plain rows for the template, or nothing where nothing was measured: an empty heading says less than
none. Names go through words.public here and are escaped by the template.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym

from limbeck import blueprints, storage
from limbeck.contracts import Blueprint, Floats, MemberReport, Rate, RunResult, Stressed
from limbeck.errors import InputError, StorageError, printable
from limbeck.reporting import members, naming, words
from limbeck.reporting import trees as drawn

SHARES = ("iqm", "superior", "improvement", "probab", "share", "kept", "retention")  # measures told in percent
HEADS = {
    "iqm": "IQM",
    "teacher iqm": "teacher's IQM",
    "improvement": "beats an episode of the teacher",
    "superior": "better than the teacher",
}
MOST_BARS = 12  # numbers of an observation whose influence is shown
GOLDEN = "golden.safetensors"


@dataclass(frozen=True)
class Table:
    """Numbers of several members under one heading."""

    heads: list[str]
    rows: list[tuple[str, list[str]]]  # member, one cell per head


# ---------------------------------------------------------------- robustness


def robustness(result: RunResult) -> list[dict[str, Any]]:
    """One entry per member that was disturbed: a row per disturbance, teacher and student side by side."""
    lows = [s.low for m in result.members for s in m.stressed if math.isfinite(s.low)]
    begin = max(min(math.floor(10 * min(lows, default=0.0) - 0.5) / 10, 0.8), 0.0)  # of the bars' common axis
    return [
        {"name": words.public(m.name, 60), "begin": words.percent(begin), "rows": [_stressed(s, result.retain, begin) for s in m.stressed]}
        for m in result.members
        if m.stressed
    ]  # fmt: skip


def _level(row: Stressed) -> str:
    """
    >>> _level(Stressed("delay", 1.0, "steps", 1, 1, 1, 1, 1, 1, 1)), _level(Stressed("sticky", 0.25, "share of steps", 1, 1, 1, 1, 1, 1, 1))
    ('1 step', '25 % of steps')
    """
    unit = words.public(row.unit, 40)
    if row.disturbance == "none":
        return ""
    if unit.startswith("share "):
        return words.percent(row.level) + unit.removeprefix("share")
    return f"{words.number(row.level)} {unit.removesuffix('s') if row.level == 1 and unit == 'steps' else unit}".strip()


def _stressed(row: Stressed, asked: float, begin: float) -> dict[str, Any]:
    return {
        "disturbance": words.public(row.disturbance, 60),
        "level": _level(row),
        "teacher": words.number(row.teacher),
        "student": words.number(row.student),
        "kept": words.percent(row.retention),
        "interval": "–" if math.isnan(row.low) else f"{words.percent(row.low)} to {words.percent(row.high)}",
        "episodes": words.count(row.episodes),
        "bar": interval_bar((row.low, row.retention, row.high), asked, begin),
    }


def interval_bar(shares: tuple[float, float, float], asked: float, begin: float) -> str:
    """A line from low to high with a dot at the value, on an axis from `begin` to 120 %; marks at the share asked for and at 100 %.

    >>> interval_bar((0.9, 0.95, 1.0), 0.95, 0.5).count("<line"), interval_bar((float("nan"), 0.9, 1), 0.95, 0.5)
    (3, '')
    """
    low, value, high = shares
    if not all(map(math.isfinite, (low, value, high))):
        return ""

    def x(share: float) -> str:
        return f"{6 + 188 * (min(max(share, begin), 1.2) - begin) / (1.2 - begin):.1f}"

    colour = "accent" if value >= asked else "warn"
    return (
        '<svg class="range" viewBox="0 0 200 18" width="200" height="18" aria-hidden="true">'
        f'<line x1="{x(1)}" x2="{x(1)}" y1="1" y2="17" stroke="var(--ink)"/>'
        f'<line x1="{x(asked)}" x2="{x(asked)}" y1="1" y2="17" stroke="var(--accent)" stroke-dasharray="2 2"/>'
        f'<line x1="{x(low)}" x2="{x(high)}" y1="9" y2="9" stroke="var(--{colour})" stroke-width="2"/>'
        f'<circle cx="{x(value)}" cy="9" r="4" fill="var(--{colour})"/></svg>'
    )


# ---------------------------------------------------------------- numbers in tables


def measures(result: RunResult) -> dict[str, Table | list[Any] | bool]:
    """Tails of the returns, simplicity of trees and rules, lineage of compressed members."""
    lineage = [(words.public(m.name, 60), [words.public(s, 60) for s in m.lineage], _kept(m), words.size(m.size_bytes))
               for m in result.members if m.lineage]  # fmt: skip
    return {
        "together": _simultaneous(result.members),
        "tails": _table(result.members, lambda m: {k: _rate(k, v) for k, v in m.tails.items()}),
        "simplicity": _table(result.members, lambda m: {k: words.number(v) for k, v in m.simplicity.items()}),
        "lineage": lineage,
    }


def _simultaneous(family: Sequence[MemberReport]) -> bool:
    """Whether all tails that have bounds say that those of a policy hold at once; runs of before do not."""
    bounds = [r for m in family for key, r in m.tails.items() if "worst" in key and math.isfinite(r.low)]
    return bool(bounds) and all("together with" in rate.interval for rate in bounds)


def _kept(member: MemberReport) -> str:
    return words.NOTHING if member.proof is None else words.percent(member.proof.retention)


def _rate(name: str, rate: Rate) -> str:
    told = words.percent if any(word in name.lower() for word in SHARES) else words.number
    if not math.isfinite(rate.value):
        return words.public(rate.interval, 40)  # why there is no number: "needs 93 episodes"
    if not math.isfinite(rate.low):
        return told(rate.value)
    if not math.isfinite(rate.high):
        return (
            f"{told(rate.value)}, at least {words.percent_down(rate.low) if told is words.percent else told(rate.low)}"
        )
    return f"{told(rate.value)} [{told(rate.low)}, {told(rate.high)}]"


def _table(family: Sequence[MemberReport], cells: Any) -> Table:
    told: list[tuple[str, Mapping[str, str]]] = [(words.public(m.name, 60), cells(m)) for m in family]
    told = [(name, found) for name, found in told if found]
    heads = list(dict.fromkeys(key for _, found in told for key in found))
    rows = [(name, [found.get(head, words.NOTHING) for head in heads]) for name, found in told]
    return Table([HEADS.get(head, words.public(head, 60)) for head in heads], rows)


def devices(result: RunResult) -> list[dict[str, str]]:
    """What every artefact costs on every microcontroller that it was built and run for."""
    return [
        {
            "member": words.public(m.name, 60), "target": members.target_name(a.target), "device": words.public(d.name, 40),
            "flash": words.size(d.flash_bytes), "ram": words.size(d.ram_bytes), "stack": words.size(d.stack_bytes),
            "instructions": words.count(d.instructions), "tools": words.public(d.tools, 120),
        }
        for m in result.members for a in m.artifacts for d in a.devices
    ]  # fmt: skip


def saliency(result: RunResult, folder: Path) -> list[dict[str, Any]]:
    """Per member the numbers of the observation that move its action most: (name, share, percent)."""
    found = []
    for member in result.members:
        known = {k: v for k, v in member.saliency.items() if math.isfinite(v)}
        if not known:
            continue
        names = _names(result.task, known, _observation_size(folder, member))
        largest = max(max(known.values()), 1e-12)
        ordered = sorted(known, key=lambda key: -known[key])
        rows = [(names[k], 100 * max(known[k], 0.0) / largest, words.percent(known[k])) for k in ordered[:MOST_BARS]]
        found.append({"name": words.public(member.name, 60), "rows": rows, "more": max(len(known) - MOST_BARS, 0)})
    return found


def _observation_size(folder: Path, member: MemberReport) -> int:
    """Numbers of the observation that a member was made for, 0 where its file does not say or it has several entries."""
    path = within(folder, f"students/{member.name}/policy.safetensors")
    try:
        space = None if path is None else blueprints.load(path)[0].spec.observation_space
    except (InputError, StorageError):
        return 0  # a tree's own section says what is wrong with the file
    return int(math.prod(space.shape)) if isinstance(space, gym.spaces.Box) else 0


def _names(task: str, keys: Iterable[str], size: int) -> dict[str, str]:
    """Words for the numbers "3" or "obs[3]" of an observation of `size` numbers (0: unknown); other keys as they are."""
    listed = list(keys)
    known = naming.observation_names(task, size or len(listed))
    found = {}
    for key in listed:
        place = re.fullmatch(r"(?:obs\[)?(\d{1,9})\]?", key)
        sure = place is not None and int(place[1]) < len(known) and (size > 0 or key.isdigit())
        found[key] = known[int(place[1])] if place is not None and sure else words.public(key, 60)
    return found


# ---------------------------------------------------------------- trees


def trees(result: RunResult, folder: Path) -> list[dict[str, Any]]:
    """The members that are one decision tree: SVG, and what it is in words."""
    found = []
    for member in result.members:
        if not member.spec.startswith(("tree", "oblique")):
            continue
        path = within(folder, f"students/{member.name}/policy.safetensors")
        if path is None:
            continue
        try:
            blueprint = blueprints.load(path)[0]
            drawing = drawn.drawing(blueprint, _visited(folder, member, blueprint))
        except (InputError, StorageError) as error:
            found.append({"name": words.public(member.name, 60), "svg": "", "words": f"not read: {printable(error)}", "visits": 0})  # fmt: skip
            continue
        if drawing is not None:
            found.append({"name": words.public(member.name, 60), "svg": drawing.svg, "words": drawing.words, "visits": drawing.visits})  # fmt: skip
    return found


def _visited(folder: Path, member: MemberReport, blueprint: Blueprint) -> Floats | None:
    """[N, inputs] what the member's layers read in the states of its golden sequence, which it visited itself."""
    path = within(folder, f"artifacts/{member.name}/{GOLDEN}")
    view = blueprint.view
    if path is None or view.history > 1 or blueprint.normaliser is not None:
        return None
    rows = storage.read_arrays(path)[0].get("input")
    if rows is None or rows.ndim != 2:
        return None
    if view.indices is not None:
        rows = rows[:, list(view.indices)] if max(view.indices) < rows.shape[1] else rows[:, :0]
    width = blueprint.layers[0].inputs
    return rows[:, :width].astype("float32") if rows.shape[1] >= width else None


def within(folder: Path, name: str) -> Path | None:
    """The file `name` of a run, None where it is absent or would lie outside of it."""
    path = folder / name
    if printable(name, 4096) != name or len(name) > 1000 or not path.is_file():
        return None
    return path if path.resolve().is_relative_to(folder.resolve()) else None
