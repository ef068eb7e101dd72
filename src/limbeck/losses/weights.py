"""Three ways to write "some task, some teacher" and the one form all of them come down to.

Texts give the weight to opposite sides: to the task's loss in a mean, to the task's loss in a sum, to the teacher's
part in a mean. Read in the wrong convention the same number trains on the wrong thing, so a recipe names the side it
weighs by the key it uses (hard_weight, task_weight, kd_weight), and everything behind it knows one form:
scale * ((1 - h) KD + h CE), where CE is the task's own loss and KD the loss that imitates the teacher.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

from limbeck.errors import InputError, unknown

Convention = Literal["ce", "task", "kd"]
KEYS: dict[Convention, str] = {"ce": "hard_weight", "task": "task_weight", "kd": "kd_weight"}  # of a recipe
RANGES: dict[Convention, float] = {"ce": 1.0, "task": 1e6, "kd": 1.0}  # largest weight; the smallest is 0


def canonical(convention: Convention, value: float, temperature: float = 1.0) -> tuple[float, float]:
    """(h, scale) of the canonical form for a weight `value` in a source's convention.

    ce    value * CE + (1 - value) * KL              lambda on the cross-entropy of a mean
    task  KL + value * CE                            lambda on the task's loss, added
    kd    (1 - value) * CE + value * tau^2 * KL      alpha on the teacher's part (Hinton et al. 2015, arXiv:1503.02531)

    The loss `kd` is tau^2 KL(softmax(z_T / tau) || softmax(z_S / tau)). The first two conventions write no tau^2: for
    a source that divides logits by `temperature` all the same, it is divided out here.

    >>> canonical("ce", 0.25)
    (0.25, 1.0)
    >>> canonical("task", 1 / 3)[0], canonical("kd", 0.75, temperature=4.0)[0]
    (0.25, 0.25)
    """
    if convention not in RANGES:
        raise unknown("weight convention", convention, get_args(Convention))
    if not 0 <= value <= RANGES[convention]:
        raise InputError(f"weight {value:g} in convention {convention!r}. Allowed: 0 to {RANGES[convention]:g}.")
    if not (math.isfinite(temperature) and temperature > 0):
        raise InputError(f"temperature {temperature:g} is not positive. Allowed: a finite number above 0.")
    square = temperature**2
    task, teacher = {
        "ce": (value, (1 - value) / square),
        "task": (value, 1 / square),
        "kd": (1 - value, value),
    }[convention]
    return task / (task + teacher), task + teacher


def chosen(hard_weight: float, task_weight: float | None, kd_weight: float | None) -> tuple[float, float]:
    """(h, scale) from a recipe's three keys, of which one is given; each weighs the recipe's own loss as it is.

    >>> chosen(0.25, None, None), chosen(0.0, None, 0.75)
    ((0.25, 1.0), (0.25, 1.0))
    """
    given: dict[Convention, float] = {"ce": hard_weight} if hard_weight else {}
    given |= {"task": task_weight} if task_weight is not None else {}
    given |= {"kd": kd_weight} if kd_weight is not None else {}
    if len(given) > 1:
        raise InputError(
            f"a recipe weighs its losses in {len(given)} ways at once: {', '.join(KEYS[c] for c in given)}. "
            "Allowed: one of imitate.hard_weight, imitate.task_weight, imitate.kd_weight."
        )
    return next((canonical(convention, value) for convention, value in given.items()), (0.0, 1.0))
