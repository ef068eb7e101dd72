"""What a search was asked for: flags and options as checked settings. No torch, no gymnasium, no Optuna."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.errors import InputError, printable, unknown
from limbeck.settings import SearchSettings

STAGE = "search."
SAMPLERS = ("TPESampler", "NSGAIISampler", "RandomSampler")  # that serve two aims and conditional spaces
PER_SECOND = {"s": 1, "": 1, "ms": 10**3, "us": 10**6, "µs": 10**6, "ns": 10**9}
INSTEAD = {"students": "--students", "imitate.rounds": "search.rungs", "race.rounds": "search.keep"}
_RANGES: dict[str, tuple[float, float]] = {
    "trials": (1, 10**6), "population": (1, 256), "rungs": (1, 10**6), "keep": (0.01, 1), "max_bytes": (1, 10**12),
    "max_latency": (1e-9, 3600), "env_steps": (1, 10**12), "depths": (1, 4), "widths": (1, 8192), "filters": (1, 8192),
    "learning_rates": (1e-8, 10), "histories": (1, 1024),
}  # fmt: skip


def settings_from(flags: Mapping[str, Any], options: Sequence[str]) -> tuple[SearchSettings, list[str]]:
    """Checked settings from flags (None: not given) and `search.KEY=VALUE` options; the other options are the recipe's.

    >>> settings_from({"trials": 8}, ["search.depths=1,2", "collect.steps=256"])[0].depths
    (1, 2)
    """
    from pydantic import TypeAdapter, ValidationError

    values = {key: value for key, value in flags.items() if value is not None}
    mine = [option.removeprefix(STAGE) for option in options if option.startswith(STAGE)]
    for option in mine:
        key, equals, text = option.partition("=")
        fields = {f.name: f for f in dataclasses.fields(SearchSettings)}
        if not equals or key not in fields:
            raise unknown("search option", key, fields)
        several = str(fields[key].type).startswith("tuple")
        values[key] = (
            tuple(v.strip() for v in text.split(",") if v.strip()) if several else (None if text == "none" else text)
        )
    if empty := [key for key, value in values.items() if value == ()]:
        raise InputError(f"{empty[0]} is empty, allowed one value or more. Leave it out for its default.")
    if isinstance(values.get("max_latency"), str):
        values["max_latency"] = seconds(values["max_latency"])
    if len(values.get("learning_rates", (0, 0))) != 2:
        raise InputError(
            f"learning_rates = {printable(','.join(values['learning_rates']))}, allowed two numbers, from and to, such as 1e-3,1e-2."
        )
    try:
        settings: SearchSettings = TypeAdapter(SearchSettings).validate_python(values)
    except ValidationError as error:
        told = [f"{'.'.join(map(str, p['loc']))} = {printable(p['input'], 60)!r}: {p['msg']}" for p in error.errors()]
        raise InputError(
            f"the search has {len(told)} wrong value{'s' * (len(told) > 1)}: {'; '.join(told)}."
        ) from error
    _check(settings)
    rest = [option for option in options if not option.startswith(STAGE)]
    for key, instead in INSTEAD.items():
        if any(option.startswith(f"{key}=") for option in rest):
            raise InputError(f"option {key} says nothing to a search, which decides it itself. Give {instead} instead.")
    return settings, rest


def seconds(text: str) -> float:
    """A duration with its unit, as `max_latency` takes it.

    >>> seconds("20us")
    2e-05
    """
    found = re.fullmatch(r"\s*([0-9.]+(?:e-?[0-9]+)?)\s*(s|ms|us|µs|ns|)\s*", text)
    try:
        value = float(found[1]) / PER_SECOND[found[2]] if found is not None else math.nan
    except ValueError:
        value = math.nan
    if not _within("max_latency", value):
        raise _no_latency(text)
    return value


def _within(name: str, value: float) -> bool:
    low, high = _RANGES[name]
    return math.isfinite(value) and low <= value <= high


def _no_latency(given: object) -> InputError:
    return InputError(
        f"max_latency = {printable(given, 60)}, allowed 1ns to 3600s: a number and its unit, s, ms, us or ns, such as 20us; without a unit it is seconds."
    )


def _check(settings: SearchSettings) -> None:
    if settings.sampler not in SAMPLERS:
        raise unknown("sampler", settings.sampler, SAMPLERS)
    if settings.storage != "journal" and not re.fullmatch(r"sqlite:///(?!:|file:)[^?]+", settings.storage):
        raise InputError(
            f"storage {printable(settings.storage)!r} is not understood. Allowed: journal (a file in the search's folder), or sqlite:///FILE."
        )
    if settings.max_latency is not None and not _within("max_latency", settings.max_latency):
        raise _no_latency(f"{settings.max_latency:g}s")
    problems = []
    for name, (low, high) in _RANGES.items():
        value = getattr(settings, name)
        for one in value if isinstance(value, tuple) else (value,):
            if one is not None and not _within(name, one):
                problems.append(f"{name} = {one:g}, allowed {low:g} to {high:g}")
    for name in ("rungs", "depths", "widths", "filters", "activations", "drivers", "polish"):
        if not getattr(settings, name):
            problems.append(f"{name} is empty, allowed one value or more")
    for name in ("rungs", "depths", "widths", "filters"):
        values = list(getattr(settings, name))
        if values != sorted(set(values)):
            problems.append(f"{name} = {', '.join(map(str, values))}, allowed growing numbers")
    if settings.learning_rates[0] > settings.learning_rates[1]:
        problems.append("learning_rates goes down, allowed from the lower to the higher")
    if problems:
        raise InputError(
            f"search settings out of range: {'; '.join(problems)}. Change the flags or the search.* options."
        )
