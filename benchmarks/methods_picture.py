"""docs/results.md and docs/methods.svg from results/methods.jsonl; see methods.py for what was measured.

python benchmarks/methods_picture.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import methods
import numpy as np
from numpy.typing import NDArray

mpl.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
BEGIN, END = "<!-- methods: begin -->", "<!-- methods: end -->"
REPEATS = 10_000
SHOWN = (-0.3, 1.15)  # of the picture's axis; marks beyond it lie on its edge
COLOURS = ("#1f5fa8", "#d1701c", "#3a8f4d")  # largest, middle, smallest size
Groups = Sequence[Sequence[float]]  # collection -> members


def interval(groups: Groups, seed: int = 0) -> tuple[float, float, float]:
    """Mean, 2.5 and 97.5 percentiles of a hierarchical bootstrap: collections are drawn, then members of each.

    >>> interval([[1.0, 1.0], [1.0, 1.0]])
    (1.0, 1.0, 1.0)
    """
    rng = np.random.default_rng(seed)
    means = np.empty(REPEATS)
    values = [np.asarray(group) for group in groups]
    for i in range(REPEATS):
        drawn = rng.integers(len(values), size=len(values))
        means[i] = np.mean([values[g][rng.integers(len(values[g]), size=len(values[g]))].mean() for g in drawn])
    low, high = np.percentile(means, [2.5, 97.5])
    return float(np.mean([group.mean() for group in values])), float(low), float(high)


def cells(lines: Sequence[Mapping[str, Any]], stage: str = "none") -> dict[tuple[str, str, str, str], Groups]:
    """(task, driver, loss, size) -> retention by collection."""
    found: dict[tuple[str, str, str, str], list[list[float]]] = {}
    for line in lines:
        if line["polish"] == stage:
            found.setdefault((line["task"], line["driver"], line["loss"], line["size"]), []).append(line["retention"])
    return found


def picture(found: Mapping[tuple[str, str, str, str], tuple[float, float, float]], path: Path) -> None:
    """One panel per task, one line per method, one mark per size."""
    names = [(d, x) for d in methods.DRIVERS for x in methods.LOSSES if (d, x) not in methods.NONSENSE]
    tasks = [task for task in methods.WORKS if any(key[0] == task for key in found)]
    figure, axes = plt.subplots(1, len(tasks), figsize=(2.9 * len(tasks) + 1.2, 6.4), sharey=True, squeeze=False)
    rows: NDArray[np.int64] = np.arange(len(names))[::-1]
    for axis, task in zip(axes[0], tasks, strict=True):
        for place, (size, colour) in enumerate(zip(methods.WORKS[task].sizes, COLOURS, strict=True)):
            for row, name in zip(rows, names, strict=True):
                if (value := found.get((task, *name, size))) is None:
                    continue
                mean, low, high = np.clip(value, *SHOWN)
                y = row + 0.25 - 0.25 * place
                axis.plot([low, high], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
                axis.plot([mean], [y], "o", color=colour, markersize=4, label=size if row == rows[0] else None)
        axis.axvline(1.0, color="#888888", linewidth=0.8)
        axis.set_xlim(*SHOWN)
        axis.set_title(task, fontsize=11)
        axis.set_xlabel("retention")
        axis.grid(axis="x", color="#e4e4e4", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.legend(
            fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, frameon=False, handletextpad=0.1
        )
        for border in range(1, len(names)):
            if names[border][0] != names[border - 1][0]:
                axis.axhline(rows[border] + 0.5, color="#bbbbbb", linewidth=0.6)
    axes[0][0].set_yticks(rows, [f"{driver} · {loss}" for driver, loss in names])
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def tables(lines: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a table per task, the mean over tasks, and stage 2."""
    found = {key: interval(groups) for key, groups in cells(lines).items()}
    parts = ["![Retention by driver, loss and size on five tasks](methods.svg)\n"]
    for task, work in methods.WORKS.items():
        if any(key[0] == task for key in found):
            parts.append(_table(task, work, found))
    parts.append(_summary(found))
    parts.append(_polished(lines))
    return "\n".join(parts)


def _table(task: str, work: methods.Work, found: Mapping[tuple[str, str, str, str], tuple[float, float, float]]) -> str:
    budget = f"{work.rounds} rounds of {work.steps} steps and {work.gradient_steps} gradient steps"
    out = [
        f"### {task} ({work.env}; {budget})\n",
        "| driver, loss | " + " | ".join(work.sizes) + " |",
        "|---|---|---|---|",
    ]
    for driver in methods.DRIVERS:
        for loss in methods.LOSSES:
            if (why := methods.NONSENSE.get((driver, loss))) is not None:
                out.append(f"| {driver}, {loss} | no sense: {why} | | |")
                continue
            values = [found.get((task, driver, loss, size)) for size in work.sizes]
            out.append(f"| {driver}, {loss} | " + " | ".join(_shown(value) for value in values) + " |")
    return "\n".join(out) + "\n"


def _summary(found: Mapping[tuple[str, str, str, str], tuple[float, float, float]]) -> str:
    """Mean over all tasks and sizes that have every method, each capped at 1 and floored at 0, so that none dominates."""
    names = [(d, x) for d in methods.DRIVERS for x in methods.LOSSES if (d, x) not in methods.NONSENSE]
    blocks = [(t, s) for t, w in methods.WORKS.items() for s in w.sizes if all((t, *n, s) in found for n in names)]
    out = [
        f"### All {len(blocks)} task-size pairs, each between 0 and 1\n",
        "| driver, loss | mean retention | mean rank |",
        "|---|---|---|",
    ]
    scores = np.array([[np.clip(found[(t, *n, s)][0], 0, 1) for t, s in blocks] for n in names])
    if not scores.size:
        return ""
    ranks = (-scores).argsort(axis=0).argsort(axis=0) + 1
    for i in np.argsort(-scores.mean(axis=1)):
        out.append(f"| {names[i][0]}, {names[i][1]} | {scores[i].mean():.3f} | {ranks[i].mean():.1f} |")
    return "\n".join(out) + "\n"


def _polished(lines: Sequence[Mapping[str, Any]]) -> str:
    before, after = cells(lines, "before"), cells(lines, "es")
    steps: dict[tuple[str, str, str, str], list[float]] = {}
    for line in lines:
        if line["polish"] == "es":
            steps.setdefault((line["task"], line["driver"], line["loss"], line["size"]), []).append(
                line["polish_steps"]
            )
    out = ["### Stage 2: the same members before and after polish on return\n"]
    out += ["| task, size | driver, loss | before | after | environment steps of polish |", "|---|---|---|---|---|"]
    for key in sorted(after):
        task, driver, loss, size = key
        told = [_shown(interval(part[key])) if key in part else "" for part in (before, after)]
        out.append(f"| {task}, {size} | {driver}, {loss} | {told[0]} | {told[1]} | {np.mean(steps[key]):,.0f} |")
    return "\n".join(out) + "\n" if after else ""


def _shown(value: tuple[float, float, float] | None) -> str:
    return "" if value is None else f"{value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]"


def main() -> None:
    lines = methods.read(HERE / "results" / "methods.jsonl")
    picture({key: interval(groups) for key, groups in cells(lines).items()}, DOCS / "methods.svg")
    machine = json.loads((HERE / "results" / "methods.machine.json").read_text())
    page = DOCS / "results.md"
    before, rest = page.read_text().split(BEGIN)
    told = (
        f"{len(lines)} collections; {machine['cpu']}, {machine['cores']} cores, {machine['date']}.\n\n{tables(lines)}"
    )
    page.write_text(f"{before}{BEGIN}\n{told}{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
