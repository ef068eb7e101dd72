"""Trees and rules in a run: one iterate per round from all rows so far, in the end the best of all by return.

VIPER (arXiv:1805.08328) keeps the tree of every round and plays them off against each other, because agreement with
the teacher says little about return.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from limbeck import rollout, seeding, tables
from limbeck.contracts import Floats, Normaliser, Policy
from limbeck.dataset import Dataset
from limbeck.runtimes.numpy import NumpyPolicy
from limbeck.stages.scene import Scene
from limbeck.students.family import Family
from limbeck.students.trees import numbers, targets
from limbeck.students.trees.grown import Grove
from limbeck.students.trees.numbers import Grown
from limbeck.students.trees.targets import Examples
from limbeck.tables import Table

FINAL = 2  # candidates that play all final episodes
OFFSET = 1 << 24  # races between rounds draw their seeds below it in the race stream, the races of iterates from it on


# ---------------------------------------------------------------- one round


def announce(here: Scene, family: Family) -> None:
    """Say at a run's start what grown members imitate: losses are for what has gradients."""
    if family.groves:
        here.run.tell("imitate", "trees and rules imitate the teacher's greedy action, whatever imitate.loss says")


def round_of(here: Scene, family: Family, data: Dataset, table: Table, number: int) -> dict[str, float]:
    """Grow one more iterate of every member; member -> its weighted loss on the rows it was grown on."""
    if not family.groves:
        return {}
    given, gap = _rows(here, family, data, table)
    settings, losses = here.run.recipe.grow, {}
    for grove in family.groves:
        for member in grove.members:
            rng = seeding.generator(here.seed, "train", number, *member.name.encode())
            drawn = targets.resampled(given, gap, settings.samples, rng)
            losses[member.name] = grove.grow(member, drawn, int(rng.integers(2**31)), settings.keep)
    return losses


def _rows(here: Scene, family: Family, data: Dataset, table: Table) -> tuple[Examples, Floats]:
    """All rows so far as raw numbers, and what a wrong action costs in each."""
    port, head = family.ports[here.task.name], here.teacher.policy.head
    wide = port.inputs // port.view.history
    plain = Normaliser(np.zeros(wide, np.float32), np.ones(wide, np.float32))
    raw = tables.table(data, port, head, plain, 1.0)
    x = raw.inputs if not isinstance(raw.inputs, tables.Frames) else raw.inputs.gather(torch.arange(raw.rows), False)
    params = table.labels["params"].numpy()
    advantage, allowed = (table.labels[k].numpy() if k in table.labels else None for k in ("advantage", "allowed"))
    gap = targets.gaps(head, params, advantage, allowed) ** np.float32(here.run.recipe.grow.power)
    given = targets.examples(x.numpy(), params, head, port.head, np.ones(len(params), np.float32))
    if table.held is not None:
        kept = ~table.held.numpy()
        given, gap = replace(given, x=given.x[kept], y=given.y[kept], weight=given.weight[kept]), gap[kept]
    return given, gap


# ---------------------------------------------------------------- the best iterate


def settle(here: Scene, family: Family) -> None:
    """Every grown architecture keeps one member, the winner of a race of all its iterates; others leave the family."""
    for grove in list(family.groves):
        found = here.run.record(f"iterates-{grove.architecture.spec.replace(':', '-')}", partial(_race, here, grove))
        name, index = found["member"], found["candidate"]
        layer = grove.candidates(name)[index]
        here.run.tell(
            "choose",
            f"{name}: candidate {index + 1} of {found['candidates']} by return {found['return_mean']:.4g} over {found['episodes']} episodes",
        )
        family.keep(m.name for m in family.members if m.name == name or m.architecture != grove.architecture)
        grove.choose(name, layer)


def race_steps(here: Scene, family: Family) -> int:
    """Environment steps that the races of iterates took."""
    found = (here.run.folder / "records").glob("iterates-*.json")
    return sum(int(here.run.record(path.stem, dict)["env_steps"]) for path in found) if family.groves else 0


def _race(here: Scene, grove: Grove) -> dict[str, Any]:
    """Successive halving on return with common seeds: all play a few episodes, the better half plays as many again as
    it has played, until the last few play all final ones. Equals: fewer numbers, more of them whole, the newer one."""
    field = [
        (member.name, i, layer) for member in grove.members for i, layer in enumerate(grove.candidates(member.name))
    ]
    candidates = len(field)
    returns: dict[tuple[str, int], list[float]] = {(name, i): [] for name, i, _ in field}
    settings, steps = here.run.recipe, 0
    episodes, final = settings.race.episodes, max(settings.grow.final_episodes, settings.race.episodes)

    def rank(one: tuple[str, int, Grown]) -> tuple[float, int, int, int, str]:
        broken = int((numbers.flat(one[2]) % 1 != 0).sum())  # 2 x + y reads better than 2.07 x + 0.98 y
        return (-float(np.mean(returns[one[:2]])), one[2].parameters, broken, one[1], one[0])

    while True:
        goal = final if len(field) <= FINAL else min(episodes, final)
        for name, i, layer in field:
            begin = len(returns[name, i])
            seeds = [seeding.episode_seed(here.seed, "race", OFFSET + n) for n in range(begin, goal)]
            if seeds:
                played = rollout.play(NumpyPolicy(grove.freeze(layer, name)), here.task, seeds, number=begin)
                returns[name, i] += played.returns.tolist()
                steps += played.env_steps
        field.sort(key=rank)
        if goal == final and len(field) <= FINAL:
            break
        field = field[: max(len(field) // 2, 1)]
        episodes *= 2
    name, index, _ = field[0]
    mean = float(np.mean(returns[name, index]))
    return {"member": name, "candidate": index, "candidates": candidates, "return_mean": mean,
            "episodes": len(returns[name, index]), "env_steps": steps}  # fmt: skip


# ---------------------------------------------------------------- polish


def searched(family: Family, name: str, task: str) -> tuple[Callable[[Any], Policy], Floats] | None:
    """(numbers [P] -> policy, their scales [P]) of a grown member; None of a trained one."""
    grove = family.grove_of(name)
    if grove is None:
        return None
    layer = grove.current(name)

    def build(row: Any) -> Policy:
        return NumpyPolicy(grove.freeze(numbers.put(layer, row), name))

    return build, numbers.scales(layer, family.normalisers.get(task), grove.port.head)
