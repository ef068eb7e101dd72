"""What is said of a finished member beside its verdict: its worst episodes, how simple it is, what it looks at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from limbeck import proof, spaces
from limbeck.contracts import Blueprint, Looked, MemberReport, Rate
from limbeck.exporters import contract, golden
from limbeck.proof import occlusion
from limbeck.proof.saliency import MOST_NUMBERS, Rows, saliency
from limbeck.proof.simplicity import simplicity
from limbeck.reporting.reading import build
from limbeck.runs import Run
from limbeck.runtimes.numpy import NumpyPolicy

INPUT = "input"  # what a policy shows under a name of no layer: the row that its first layer reads


def portrayed(run: Run, report: MemberReport, blueprint: Blueprint) -> MemberReport:
    """The member's report with tails, simplicity and saliency, computed once per run from the states of its golden
    sequences and the episodes of its proof: no environment step is taken. Records of before have no maps of pictures."""

    def compute() -> dict[str, Any]:
        tails = proof.tails_of(report.proof, run.recipe.seed) if report.proof is not None else {}
        return {"tails": tails, **looks(run.folder / "artifacts" / report.name, blueprint, report.formula)}

    record = run.record(f"portrait-{report.name}", compute)
    return replace(
        report,
        tails={key: build(Rate, value, "tails") for key, value in record["tails"].items()},
        simplicity=dict(record["simplicity"]),
        saliency=dict(record["saliency"]),
        looks={key: build(Looked, value, "looks") for key, value in record.get("looks", {}).items()},
    )


def looks(artifact: Path, blueprint: Blueprint, formula: str = "") -> dict[str, Any]:
    """simplicity, saliency and looks (maps of pictures) of a policy on the golden states of its artefact folder; without
    any, what needs none."""
    path = artifact / golden.FILE
    if not path.is_file() or blueprint.spec.agents > 1:
        return {"simplicity": simplicity(blueprint, None, formula), "saliency": {}, "looks": {}}
    seen = golden.load(path)
    space, view = blueprint.spec.observation_space, blueprint.view
    rows = Rows(spaces.flatten(seen.obs, space, view), seen.first, spaces.mask_of(seen.obs, view))
    policy = NumpyPolicy(blueprint, captured=(INPUT,))
    state, inputs = policy.initial_state(1), None
    if not state and rows.flat.shape[1] <= MOST_NUMBERS:
        inputs = policy.on_flat(rows.flat, state, rows.first, rows.masks).features[INPUT]
    plain = NumpyPolicy(blueprint)
    return {
        "simplicity": simplicity(blueprint, inputs, formula),
        "saliency": saliency(plain, rows, names(blueprint), occlusion.numbers(space, view)),
        "looks": occlusion.maps(plain, rows),
    }


def names(blueprint: Blueprint) -> list[str]:
    """Of the flat observation's numbers, the view's keys and indices applied: obs[3], KEY[3], or obs = 3 of a choice."""
    found = []
    for part in contract.input_layout(blueprint.spec.observation_space, replace(blueprint.view, mask=None)):
        key, first = part["key"] or "obs", int(part.get("start", 0))
        marks = " = {}" if part["kind"] == "one-hot" else "[{}]"
        found += [key + marks.format(first + i) for i in range(part["count"])]
    indices = blueprint.view.indices
    return found if indices is None else [found[i] for i in indices]
