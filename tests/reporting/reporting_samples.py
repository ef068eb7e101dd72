"""Made-up but realistic run folders for the tests of what people see. Run as a script to write one and look at it:

python tests/reporting/reporting_samples.py FOLDER [rich|hostile|partly|nothing|empty]
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np

from limbeck import blueprints, seeding, storage
from limbeck.contracts import (
    Artifact,
    Bill,
    Blueprint,
    Bounds,
    Device,
    Disagreement,
    Evaluation,
    Head,
    Latency,
    MemberReport,
    Proof,
    Rate,
    RunResult,
    Spec,
    Stressed,
    TeacherInfo,
    Tree,
)
from limbeck.reporting import pictures

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
    "[red]not markup[/red]\u202e\n---\n",
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
        Artifact("c", folder / "c", ("policy.h", "contract.json"), 4 * numbers + 900, True),
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


DISTURBED = (
    ("none", 0.0, ""), ("observation noise", 0.05, "standard deviations"), ("delay", 1.0, "steps"), ("sticky actions", 0.25, "share of steps"),
    ("dropped frames", 0.1, "share of steps"), ("gravity", 1.2, "times"), ("adversarial", 0.02, "standard deviations"),
)  # fmt: skip
TREE = Tree(
    np.array([0.5, -1.0], np.float32), np.array([0.1, -0.04, 0.25], np.float32), np.array([[0], [1], [2], [3]], np.float32),
    ((4,), (1, 5), (3,)), ((1, 2), (-1, -2), (-3, -4)), width=8, says=4,
)  # fmt: skip


def tree_policy(tree: Tree = TREE) -> Blueprint:
    """A tree for LunarLander: its own spaces, made by hand."""
    spec = Spec(gym.spaces.Box(-5, 5, (8,), np.float32), gym.spaces.Discrete(4), "LunarLander-v3")
    return Blueprint(spec, Head("categorical", (4,)), (tree,))


def measured(one: MemberReport, index: int) -> MemberReport:
    """A member with everything that is measured beside its verdict."""
    rng = seeding.generator(5, "fidelity", index)
    stressed = []
    for name, level, unit in DISTURBED:
        teacher, kept = 262 - 40 * float(rng.random()), 1 - 0.2 * float(rng.random())
        stressed.append(
            Stressed(name, level, unit, teacher, kept * teacher, kept, kept - 0.05, kept + 0.04, 64, 64 * 250)
        )
    devices = [Device(f"cortex-{core}", 900 + 4 * one.parameters, 64, 120, 9000 + 11 * one.multiply_adds, "arm-none-eabi-gcc 12.2, qemu 7.2")
               for core in ("m0", "m4f")]  # fmt: skip
    artifacts = [replace(a, devices=devices) if a.target == "c" else a for a in one.artifacts]
    influence = {str(i): v for i, v in enumerate((0.04, 0.12, 0.09, 0.22, 0.28, 0.19, 0.03, 0.03))}
    tails = {
        "iqm": Rate(1.011, 0.992, 1.025, 136, "bootstrap"), "worst 5 %": Rate(121.0, 64.0, 170.2, 136, "bootstrap"),
        "improvement": Rate(0.48, 0.42, 0.55, 136, "bootstrap"), "superior": Rate(1.03, 1.0049, float("inf"), 136, "anytime-valid"),
        "worst 1 %": Rate(float("nan"), float("nan"), float("nan"), 136, "needs 297 episodes"),
    }  # fmt: skip
    disagreements = tuple(
        Disagreement(1800 + i, 31 + 7 * i, "2", "0", 9.5 / (i + 1), "return (fitted (error +1.2 [-0.5, +3]))", f"gallery/{one.name}-{i}.jpg" * (i < 4))
        for i in range(6)
    )  # fmt: skip
    return replace(
        one, artifacts=artifacts, stressed=stressed, tails=tails, saliency=influence, disagreements=disagreements
    )


def rich(family: int = 8) -> RunResult:
    """Everything that a run can measure, of so many members; the last one is a tree, the one before it compressed."""
    whole = result()
    names = list(SHAPES)
    members = [member(names[i % len(names)], i) for i in range(family)]
    members = [replace(m, name=f"{m.spec}-s{i}") for i, m in enumerate(members)]
    few = {"depth": 3.0, "leaves": 4.0, "mean path": 2.1, "numbers read": 4.0}
    members[-1] = replace(
        members[-1],
        name="tree:leaves=4-s0",
        spec="tree:leaves=4",
        simplicity=few,
        formula="if x[4] <= 0.1 then action 0 else action 1",
    )
    members[-2] = replace(members[-2], lineage=("mlp:64x64-s0", "prune 0.5", "quantise int4"))
    return replace(whole, members=[measured(m, i) for i, m in enumerate(members)])


def write_rich(folder: Path, told: RunResult) -> Path:
    """A run folder with pictures, the observations of a gallery and a tree."""
    write_run(folder, told, metrics())
    for index, one in enumerate(told.members):
        for i in range(4):
            storage.write_bytes(folder / "gallery" / f"{one.name}-{i}.jpg", pictures.jpeg(_frame(index, i)))
        observations = [{"number": i, "seed": d.seed, "step": d.step, "size": 8, "numbers": [0.1 * i, -0.25, 1.4, 0.0, -0.02, 0.0, 1.0, 0.0], "picture": d.picture}
                        for i, d in enumerate(one.disagreements)]  # fmt: skip
        note = {
            "member": one.name,
            "episodes": 4,
            "states": 1010,
            "different": 63,
            "unit": "nats",
            "reason": "",
            "observations": observations,
        }
        storage.write_json(folder / "gallery" / f"{one.name}.json", note)
    last = told.members[-1].name
    blueprints.save(tree_policy(), folder / "students" / last / "policy.safetensors", {})
    rows = np.linspace(-1, 1, 800, dtype=np.float32).reshape(100, 8)
    storage.write_arrays(folder / "artifacts" / last / "golden.safetensors", {"input": rows})
    return folder


def _frame(member_index: int, number: int) -> np.ndarray:
    """[400, 600, 3] a made-up frame: hills, a sky and something that flies."""
    y, x = np.mgrid[:400, :600]
    frame = np.zeros((400, 600, 3), np.uint8)
    frame[y > 300 + 20 * np.sin(x / 40 + number)] = (235, 235, 235)
    frame[(abs(x - 80 * number - 120) < 24) & (abs(y - 40 * (member_index % 5) - 60) < 18)] = (128, 102, 230)
    return frame


def hostile() -> RunResult:
    """Every text that a stranger could have chosen carries an attack."""
    whole = partly()
    members = [
        replace(
            measured(m, 0), name=bad, spec=bad, formula=bad, lineage=(bad, bad), tails={bad: Rate(0.5, 0.4, 0.6, 9, bad)}, simplicity={bad: 2.0}, saliency={bad: 0.5, "1": 0.2},
            stressed=(Stressed(bad, 1.0, bad, 2.0, 1.0, 0.5, 0.4, 0.6, 8, 80),), disagreements=(Disagreement(1, 2, bad, bad, 3.0, bad, bad),), latency={bad: Latency(1e-6, 2e-6, 10), **m.latency},
            artifacts=(Artifact(bad, Path("artifacts") / "x", (bad,), 10, False, bad, (Device(bad, 1, 2, 3, 4, bad),)),),
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
    made = {
        "result": result,
        "partly": partly,
        "nothing": nothing_proved,
        "empty": empty,
        "hostile": hostile,
        "rich": rich,
    }[what]()
    for stale in ("metrics.jsonl",):
        (target / stale).unlink(missing_ok=True)
    if what == "rich":
        write_rich(target, made)
    else:
        write_run(target, made, hostile_metrics() if what == "hostile" else metrics())
    print(write(target))
