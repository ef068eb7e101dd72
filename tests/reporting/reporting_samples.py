"""Made-up but realistic run folders for the tests of what people see. Run as a script to write one and look at it:

python tests/reporting/reporting_samples.py FOLDER [hostile|partly|nothing|empty]
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from limbeck import seeding, storage
from limbeck.contracts import (
    Artifact,
    Bill,
    Bounds,
    Evaluation,
    Latency,
    MemberReport,
    Proof,
    RunResult,
    TeacherInfo,
)

SHAPES = {  # numbers, multiply-adds, retention that the made-up returns scatter around
    "mlp:64x64": (4996, 4864, 1.01), "mlp:32x32": (1476, 1408, 1.005), "mlp:16x16": (484, 448, 1.0), "mlp:8x8": (180, 160, 0.995),
    "mlp:16": (212, 192, 0.99), "mlp:8": (108, 96, 0.99), "mlp:4": (56, 48, 0.985), "linear": (36, 32, 0.98),
}  # fmt: skip
HOSTILE = (
    "<img src=x onerror=document.title='CANARY'>",
    "</script><script>document.title='CANARY'</script>",
    '"><svg onload=document.title=String.fromCharCode(67)>',
    "\x1b]0;CANARY\x07\x1b[31mred",
    "$\\frac{1}{0}$ {{ 7*7 }} &amp; ${x}",
    "=cmd|' /C calc'!A0",
    "</text></svg><script>document.title='CANARY'</script>",
    "[red]not markup[/red]",
)


def proof(member: str, share: float, episodes: int, verdict: str = "proved", retain: float = 0.95) -> Proof:
    rng = seeding.generator(7, "proof", int(1e4 * share), episodes)
    teacher = rng.normal(268, 22, episodes).clip(-50, 320)
    chance = rng.normal(-180, 110, episodes)
    student = chance.mean() + share * (teacher - chance.mean()) + rng.normal(0, 14, episodes)
    crashed = rng.random(episodes) < 0.03
    student[crashed] -= rng.uniform(100, 260, int(crashed.sum()))
    kept = float((student.mean() - chance.mean()) / (teacher.mean() - chance.mean()))
    return Proof(
        task="LunarLander-v3", member=member, played_by="c", retain=retain, alpha=0.05, verdict=verdict,
        reason={
            "proved": f"the e-value passed 20 after {episodes} episodes",
            "not proved": f"{episodes} episodes were played and the e-value stayed below 20: capacity is the likely cause, its loss on the teacher's own states stays high",
            "undecided": "one episode fell below the floor that was fixed before the proof",
        }[verdict],
        bounds=Bounds(-1100.0, 320.0, "lowest and highest of 1,000 random episodes, widened by a tenth"), seed_stream="proof",
        seeds=tuple(seeding.episode_seed(0, "proof", i) for i in range(episodes)), student_returns=tuple(student.tolist()),
        teacher_returns=tuple(teacher.tolist()), random_returns=tuple(chance.tolist()),
        log_wealth=3.1 if verdict == "proved" else 0.4, retention=kept,
        retention_low=(retain + 0.003 if verdict == "proved" else retain - 0.04), env_steps=episodes * 260,
        fidelity={"agreement": 0.934, "kl": 0.081},
    )  # fmt: skip


def member(name: str, index: int, verdict: str | None = "proved", polished: bool = False) -> MemberReport:
    numbers, macs, share = SHAPES[name]
    played = (
        None
        if verdict is None
        else proof(f"{name}-s1", share - (0.06 if verdict != "proved" else 0), 74 + 31 * index, verdict)
    )
    nanoseconds = 12 + macs * 0.16
    latency = {
        "c": Latency(nanoseconds * 1e-9, nanoseconds * 1.3e-9, 100_000),
        "onnx": Latency(4.5e-6 + macs * 2e-10, 7.8e-6 + macs * 3e-10, 20_000),
        "numpy": Latency(11e-6 + 2e-6 * name.count("x"), 19e-6 + macs * 1e-9, 20_000),
    }
    folder = Path("artifacts") / f"{name}-s1"
    artifacts = (
        Artifact("c", folder / "c", ("policy.c", "policy.h", "contract.json"), 4 * numbers + 900, True),
        Artifact("onnx", folder / "onnx", ("policy.onnx",), 4 * numbers + 1400, True),
    )
    return MemberReport(f"{name}-s1", name, 1, numbers, 4 * numbers + 900, macs, played, latency, artifacts, polished)


def result() -> RunResult:
    verdicts = ["proved"] * 6 + ["proved", "proved"]
    members = [
        member(n, i, v, polished=n in ("mlp:4", "linear"))
        for i, (n, v) in enumerate(zip(SHAPES, verdicts, strict=True))
    ]
    rng = np.random.default_rng(1)

    def evaluation(policy: str, mode: str, mean: float, spread: float) -> Evaluation:
        returns = rng.normal(mean, spread, 40)
        return Evaluation(
            policy,
            mode,
            float(returns.mean()),
            mean - spread / 3,
            mean + spread / 3,
            40,
            40 * 240,
            tuple(returns.tolist()),
        )

    return RunResult(
        task="LunarLander-v3",
        teacher=TeacherInfo(
            "/home/ada/teachers/lunarlander_ppo_sb3.zip", "sb3", "PPO", "9f2c" * 16, {"gamma": 0.999, "n_steps": 1024, "policy_kwargs": {"net_arch": [64, 64]}},
            ("data: policy_class", "data: lr_schedule", "data: clip_range"), ("activation assumed tanh, agrees with the weights' scale", "no normaliser beside the file"),
        ),
        evaluations={"greedy": evaluation("teacher", "greedy", 268.0, 21), "sampled": evaluation("teacher", "sampled", 249.0, 44), "random": evaluation("random", "sampled", -181.0, 108)},
        mode="greedy", retain=0.95, alpha=0.05, members=members,
        bill=Bill(28_400, 12_288, 61_900, 230_500, 402_000, 12_288, 48_000, 51.3, 612_000_000, 1_000),
        machine={"system": "Linux", "processor": "2 cores, x86-64", "memory": "8 GB"},
        versions={"limbeck": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "gymnasium": "1.4.0", "numpy": "2.4.6"},
        command="limbeck distill /home/ada/teachers/lunarlander_ppo_sb3.zip --env LunarLander-v3 --students mlp:64x64 mlp:16x16@4 linear --out runs/lunar --seed 0",
        notes=("LunarLander-v2 is no longer in Gymnasium; LunarLander-v3 is used, verified by the teacher's return",),
    )  # fmt: skip


def metrics() -> list[dict[str, object]]:
    rng = np.random.default_rng(3)
    rows: list[dict[str, object]] = []
    for round_ in range(1, 13):
        steps = 1024 * round_
        rows.append(
            {"stage": "collect", "round": round_, "env_steps": steps, "driver": "teacher" if round_ == 1 else "student"}
        )
        for k, (name, (_, _, share)) in enumerate(SHAPES.items()):
            for seed in range(2):
                if seed == 1 and round_ > 8:
                    continue
                loss = 0.6 * round_**-0.9 * (1 + 0.25 * k) * float(rng.uniform(0.9, 1.1))
                rows.append(
                    {"stage": "imitate", "round": round_, "env_steps": steps, "member": f"{name}-s{seed}", "loss": loss}
                )
                if round_ in (4, 8, 12):
                    mean = 268 * share - 500 / round_**1.6 * (1 + 0.3 * k) * float(rng.uniform(0.7, 1.3))
                    rows.append(
                        {
                            "stage": "race",
                            "round": round_,
                            "env_steps": steps,
                            "member": f"{name}-s{seed}",
                            "return_mean": mean,
                            "retention": (mean + 181) / 449,
                            "kept": seed == 0,
                        }
                    )
    for generation in range(0, 21, 5):
        for k, name in enumerate(("mlp:4", "linear")):
            rows.append(
                {
                    "stage": "polish",
                    "generation": generation,
                    "member": f"{name}-s1",
                    "return_mean": 190 + 3.6 * generation - 20 * k,
                    "retention": 0.9,
                }
            )
    return rows


def partly() -> RunResult:
    """The sequence stopped: three proved, one undecided, one not, three never played."""
    whole = result()
    changed = [*whole.members[:3], member("mlp:8x8", 9, "undecided"), member("mlp:16", 12, "not proved")]
    return replace(whole, members=[*changed, *(replace(m, proof=None) for m in whole.members[5:])])


def nothing_proved() -> RunResult:
    whole = result()
    return replace(
        whole, members=[member("mlp:64x64", 20, "not proved"), *(replace(m, proof=None) for m in whole.members[1:])]
    )


def empty() -> RunResult:
    return replace(result(), members=(), bill=Bill(), machine={}, versions={}, notes=(), evaluations={})


def hostile() -> RunResult:
    """Every text that a stranger could have chosen carries an attack."""
    whole = partly()
    members = [
        replace(
            m, name=bad, spec=bad, latency={bad: Latency(1e-6, 2e-6, 10), **m.latency},
            artifacts=(Artifact(bad, Path("artifacts") / "x", (bad,), 10, False, bad),),
            proof=None if m.proof is None else replace(m.proof, member=bad, reason=bad, played_by=bad, seed_stream=bad, bounds=Bounds(0, 1, bad), fidelity={bad: 0.5}),
        )
        for m, bad in zip(whole.members, HOSTILE, strict=True)
    ]  # fmt: skip
    bad = " ".join(HOSTILE)
    teacher = TeacherInfo(
        f"/home/ada/{HOSTILE[0]}.zip",
        HOSTILE[1],
        HOSTILE[2],
        HOSTILE[3],
        {HOSTILE[4]: bad, "=a": [bad]},
        HOSTILE,
        HOSTILE,
    )
    return replace(
        whole, task=HOSTILE[0], teacher=teacher, members=members, command=bad, notes=HOSTILE, machine={HOSTILE[5]: bad},
        versions={HOSTILE[2]: HOSTILE[0]}, evaluations={**whole.evaluations, HOSTILE[0]: whole.evaluations["greedy"]},
    )  # fmt: skip


def hostile_metrics() -> list[dict[str, object]]:
    odd: list[dict[str, object]] = [
        {"stage": "imitate"},
        {"stage": "race", "env_steps": None, "return_mean": 3},
        {"stage": ["x"]},
    ]
    rows = [{**row, "member": HOSTILE[i % len(HOSTILE)]} if "member" in row else row for i, row in enumerate(metrics())]
    return [*rows, *odd]


def write_run(folder: Path, told: RunResult, rows: list[dict[str, object]] | None = None, recipe: str = "") -> Path:
    """A run folder as the pipeline leaves it."""
    storage.write_json(folder / "result.json", told)
    if rows is not None:
        storage.append_metrics(folder, rows)
    storage.write_text(folder / "recipe.yaml", recipe or "teacher: /home/ada/t.zip\nenv: LunarLander-v3\nseed: 0\n")
    return folder


if __name__ == "__main__":
    from limbeck.reporting import write

    target, what = Path(sys.argv[1]), (sys.argv[2:] or ["result"])[0]
    made = {"result": result, "partly": partly, "nothing": nothing_proved, "empty": empty, "hostile": hostile}[what]()
    for stale in ("metrics.jsonl",):
        (target / stale).unlink(missing_ok=True)
    write_run(target, made, hostile_metrics() if what == "hostile" else metrics())
    print(write(target))
