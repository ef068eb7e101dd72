"""Model cards: README.md of a run and of each of its students, with the metadata that the Hugging Face hub reads.

The metadata is the YAML between the first two lines of dashes (https://huggingface.co/docs/hub/model-cards); its
`model-index` holds the return as mean_reward, "mean +/- standard deviation" as the hub's boards for reinforcement
learning show it, and the interval beside it. Names go through words.public and, in Markdown, lose every sign that could
mean something there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from limbeck import recipes, storage
from limbeck.contracts import MemberReport, Proof, RunResult, confidence
from limbeck.reporting import members, words
from limbeck.reporting.evidence import within

CARD = "README.md"
TAGS = ("reinforcement-learning", "deep-reinforcement-learning", "distillation", "limbeck")
PIPELINE = "reinforcement-learning"


def write_cards(folder: Path, result: RunResult) -> list[Path]:
    """README.md of the run, and beside every student's policy file; their paths."""
    written = [folder / CARD]
    storage.write_text(written[0], run_card(result))
    for member in result.members:
        policy = within(folder, f"students/{member.name}/policy.safetensors")
        if policy is not None:
            written.append(policy.with_name(CARD))
            storage.write_text(written[-1], member_card(result, member))
    return written


def run_card(result: RunResult) -> str:
    """The card of a whole family; its metadata is that of the member in the headline, since the hub reads one model."""
    told = words.smallest_proved(result) or words.closest(result)
    return f"""{_metadata(result, [] if told is None else [told[0]])}
# {plain(words.headline(result))}

A family of students distilled from one teacher with Limbeck; `report.html` shows everything that was measured.

{_rows(result.members)}
{_about(result)}
## Use

    limbeck check .                                            # checksums, and every artefact against its golden rows
    limbeck prove .:{_first(result)} --max-episodes 100            # play it against the teacher
    limbeck distill students/{_first(result)}/policy.safetensors --env {plain(result.task)} --students linear

`students/NAME/policy.safetensors` is a whole policy, `artifacts/NAME/` what ships, each with a README of its own.
"""


def member_card(result: RunResult, member: MemberReport) -> str:
    """The card of one student."""
    formula = f"What it does:\n\n    {words.public(member.formula, 2000)}\n\n" if member.formula else ""
    return f"""{_metadata(result, [member])}
# {plain(member.name)} for {plain(result.task)}

{_verdict(result, member)}

{_rows([member])}
{formula}{_about(result)}
## Use

`policy.safetensors` holds the whole policy (observation view, normaliser, layers, action head) as plain arrays with its
description in the header; nothing in it is executed on loading.

    limbeck inspect policy.safetensors
    limbeck export policy.safetensors --to onnx c
    limbeck distill policy.safetensors --env {plain(result.task)} --students linear
"""


# ---------------------------------------------------------------- metadata


def metadata(result: RunResult, family: Sequence[MemberReport]) -> dict[str, Any]:
    """What the hub reads: library, task, tags, and one entry of `model-index` per student that was played."""
    played = [(m, m.proof) for m in family if m.proof is not None and m.proof.student_returns]
    task = words.public(result.task, 100)
    found: dict[str, Any] = {"library_name": "limbeck", "pipeline_tag": PIPELINE, "tags": [*TAGS, task]}
    if played:
        found["metrics"] = ["mean_reward"]
        found["model-index"] = [_entry(task, m, proof) for m, proof in played]
    return found


def _entry(task: str, member: MemberReport, proof: Proof) -> dict[str, Any]:
    returns = np.asarray([r for r in proof.student_returns if math.isfinite(r)], np.float64)
    mean, low, high = words.mean_interval(proof.student_returns)
    spread = float(returns.std(ddof=1)) if len(returns) > 1 else 0.0
    interval = {"confidence": 0.95, "low": _round(low), "high": _round(high), "episodes": len(returns)}
    kept = {"confidence": 1 - proof.alpha, "low": _round(proof.retention_low), "verdict": proof.verdict}
    metrics: list[dict[str, Any]] = [
        {"type": "mean_reward", "name": "mean_reward", "value": f"{mean:.2f} +/- {spread:.2f}", "args": interval, "verified": False},
        {"type": "retention", "name": "share of the teacher's return over random play", "value": _round(proof.retention), "args": kept, "verified": False},
    ]  # fmt: skip
    return {
        "name": words.public(member.name, 100),
        "results": [
            {
                "task": {"type": PIPELINE, "name": PIPELINE},
                "dataset": {"name": task, "type": task},
                "metrics": [m for m in metrics if m["value"] is not None],
            }
        ],
    }


def _round(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


def _metadata(result: RunResult, family: Sequence[MemberReport]) -> str:
    return f"---\n{recipes.to_yaml(metadata(result, family))}---\n"


# ---------------------------------------------------------------- words


def _verdict(result: RunResult, member: MemberReport) -> str:
    proof = member.proof
    if proof is None:
        return f"A student of {words.count(member.parameters)} numbers; no proof was played with it."
    share, sure = words.percent(proof.retain), confidence(proof.alpha)
    if proof.verdict == "proved":
        claim = f"keep at least {share} of its teacher's return over random play" if proof.retain < 1 else words.claim(proof.retain, "keep", "be")  # fmt: skip
        return f"Proved to {claim}, with {sure} confidence over {words.plural(proof.episodes, 'episode')}."
    return f"Not proved to keep {share} of its teacher ({proof.verdict} after {words.plural(proof.episodes, 'episode')}): {plain(proof.reason)}."


def _rows(family: Sequence[MemberReport]) -> str:
    lines = ["| student | numbers | size | return | keeps | at least | verdict |", "|---|---:|---:|---:|---:|---:|---|"]
    for m in family:
        proof = m.proof
        kept = (words.NOTHING,) * 3 if proof is None else (words.interval(*words.mean_interval(proof.student_returns)), words.percent(proof.retention), words.percent_down(proof.retention_low))  # fmt: skip
        cells = (
            plain(m.name),
            words.count(m.parameters),
            words.size(m.size_bytes),
            *(c.replace("[", "(").replace("]", ")") for c in kept),
            words.verdict(m),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _about(result: RunResult) -> str:
    teacher = result.teacher
    file = teacher.path.replace("\\", "/").rsplit("/", 1)[-1]
    versions = ", ".join(f"{plain(k)} {plain(v)}" for k, v in result.versions.items())
    targets = sorted({members.target_name(a.target) for m in result.members for a in m.artifacts})
    lines = [
        f"- Environment: {plain(result.task)}",
        f"- Teacher: {plain(file)} ({plain(teacher.format)}, {plain(teacher.algorithm)}), SHA-256 `{plain(teacher.sha256) or '-'}`",
        *([f"- Exported as: {', '.join(map(plain, targets))}"] if targets else []),
        f"- Environment steps in all: {words.count(result.bill.env_steps)}",
        *([f"- Versions: {versions}"] if versions else []),
    ]
    told = f"A verdict speaks about this environment, these bounds and these seeds alone. {words.family(result)}"
    return "\n".join(lines) + f"\n\n{told.rstrip()}\n"


def _first(result: RunResult) -> str:
    """The member that examples name: the smallest proved one, else the first."""
    smallest = words.smallest_proved(result)
    return plain(smallest[0].name) if smallest else plain(result.members[0].name) if result.members else "NAME"


def plain(text: object) -> str:
    """Text that means nothing in Markdown or HTML: letters, digits and a few signs, everything else an underscore.

    >>> plain("</script>|[x](y)*\\u202e"), plain("x[3] <= -0.5"), plain("mlp:16x16-s1")
    ('_/script___x_(y)__u202e', 'x_3_ _= -0.5', 'mlp:16x16-s1')
    """
    return "".join(c if c.isalnum() or c in " -.,:;/=+%()'" else "_" for c in words.public(text, 400))
