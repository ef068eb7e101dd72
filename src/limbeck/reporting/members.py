"""The family's rows and verdict cards: what the table and the proofs' section of the page are filled with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.contracts import OWN, Artifact, MemberReport, Proof, RunResult, confidence
from limbeck.reporting import table, words

TARGETS = {"c": "C", "onnx": "ONNX", "wasm": "WebAssembly", "python": "Python", "sb3": "SB3"}
PLAYERS = {"c": "the exported C code", "onnx": "the exported ONNX file", "numpy": "the student's weights in numpy"}


def target_name(target: str) -> str:
    return TARGETS.get(target, words.public(target, 20))


def row(member: MemberReport, index: int, drawings: Mapping[str, str], folder: Path) -> dict[str, Any]:
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


def shared(result: RunResult) -> str:
    """How a family with compressed members shares its error probability, "" for others."""
    first, most = next((m.proof for m in result.members if not m.lineage), None), words.family_error(result)
    if first is None or most is None:
        return ""
    made = sum(bool(member.lineage) for member in result.members)
    split = "share" if most <= result.alpha * (1 + 1e-9) else "each have"
    return (
        f"The members that were not compressed are one sequence, {'the compressed one is another' if made == 1 else f'each of the {made} compressed ones is another'}. They {split} the error "
        f"probability of {words.percent(result.alpha)}: the first was tested at {words.percent(first.alpha)}. {words.family(result)}"
    )


def _proof_facts(proof: Proof) -> list[tuple[str, str]]:
    bounds = proof.bounds
    facts = [
        ("played by", PLAYERS.get(proof.played_by, words.public(proof.played_by, 30))),
        ("kept", f"{words.percent(proof.retention)}, at least {words.percent_down(proof.retention_low)}"),
        ("asked for", f"{words.percent(proof.retain)} at {confidence(proof.alpha)} confidence"),
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
