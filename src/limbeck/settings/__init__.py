"""Every stage's settings, frozen and checked: no unknown key, every number in its range.

Options of the command line are text, so text that reads as the wanted type is taken ("3" for 3, "true" for True).
No torch, no gymnasium: `--help` and recipe checks need only this.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.errors import InputError, printable, unknown
from limbeck.settings.ranges import RANGES, TIMED_ROUNDS
from limbeck.settings.stages import (
    CollectSettings,
    CompressionSettings,
    CriticSettings,
    ExportSettings,
    GrowSettings,
    ImitateSettings,
    PolishSettings,
    ProveSettings,
    RaceSettings,
    ReportSettings,
    SearchSettings,
    StressSettings,
    TaskSettings,
    VerifySettings,
)

__all__ = [
    "DEFAULT_STUDENTS",
    "OBJECT",
    "TIMED_ROUNDS",
    "CollectSettings",
    "CompressionSettings",
    "CriticSettings",
    "ExportSettings",
    "GrowSettings",
    "ImitateSettings",
    "PolishSettings",
    "ProveSettings",
    "RaceSettings",
    "Recipe",
    "ReportSettings",
    "SearchSettings",
    "StressSettings",
    "TaskSettings",
    "VerifySettings",
    "named",
    "recipe_from",
    "with_options",
]

OBJECT = "python:"  # begins a recipe's teacher or env that was an object in Python
DEFAULT_STUDENTS = ("mlp:64x64", "mlp:32x32", "mlp:16x16", "mlp:8x8", "mlp:16", "mlp:8", "mlp:4", "linear")


@dataclass(frozen=True)
class Recipe:
    """A whole distillation. Written resolved into the run folder; `limbeck distill recipe.yaml` runs it again."""

    teacher: str
    env: str | None = None  # None only with `data`
    data: str | None = None  # recordings to imitate on where there is no environment: .npz, or a Minari data set
    data_sha256: str | None = None  # of the recordings, written into the run's recipe.yaml
    students: tuple[str, ...] = DEFAULT_STUDENTS
    seed: int = 0
    env_steps: int | None = None  # budget of collection steps; None: rounds x steps
    seconds: float | None = None  # budget of imitation; becomes a number of rounds that is recorded
    seconds_rounds: int | None = None  # that number, written into the run's recipe.yaml once it is known
    kind: str | None = None  # how to read the output of a callable, ONNX or Keras teacher: q, categorical, gaussian ...
    architecture: str | None = None  # of weights that do not say how to compute with them
    trust: str | None = None  # SHA-256 of a TorchScript or .pt2 teacher that may run, confined
    teacher_keys: tuple[str, ...] | None = None  # entries of a Dict observation the teacher sees; None: found out
    teacher_indices: tuple[int, ...] | None = None  # positions of the flat observation the teacher sees
    normaliser: str | None = None  # vec_normalize.pkl; None: one beside the teacher is used
    teacher_sha256: str | None = None
    threads: int = 1  # of torch; part of the run's identity
    gamma: float | None = None  # discount of the teacher's values; None: what its file states, else 0.99
    compress: tuple[str, ...] = ()  # steps on chosen members: prune SHARE, low_rank RANK, quantise WIDTH; or tables
    history: int = 1  # frames a student sees, with a GRU too
    noise: float = 0.0  # standard deviation added to what a student sees in training, in spreads of each number
    keys: tuple[str, ...] | None = None  # entries of a Dict observation the student sees; None: those of the teacher
    indices: tuple[int, ...] | None = None  # positions of the flat observation the student sees
    task: TaskSettings = TaskSettings()
    verify: VerifySettings = VerifySettings()
    collect: CollectSettings = CollectSettings()
    imitate: ImitateSettings = ImitateSettings()
    critic: CriticSettings = CriticSettings()
    race: RaceSettings = RaceSettings()
    grow: GrowSettings = GrowSettings()
    polish: PolishSettings = PolishSettings()
    compression: CompressionSettings = CompressionSettings()
    prove: ProveSettings = ProveSettings()
    stress: StressSettings = StressSettings()
    export: ExportSettings = ExportSettings()
    report: ReportSettings = ReportSettings()


def named(what: str, value: str) -> str:
    """A recipe's teacher or env where it can be found by its name; refuses what stands for a Python object."""
    if value.startswith(OBJECT):
        raise InputError(
            f"the {what} of this run was a Python object ({printable(value[len(OBJECT) :])}), which cannot be found by name. "
            f"Pass it again to limbeck.distill, or make it importable and name it package.module:attribute."
        )
    return value


def recipe_from(values: Mapping[str, Any]) -> Recipe:
    """A checked recipe from plain nested values (YAML, flags, Python). All problems are reported at once.

    >>> recipe_from({"teacher": "t.zip", "env": "CartPole-v1"}).prove.retain
    0.95
    """
    _refuse_unknown(values, Recipe, "")
    from pydantic import TypeAdapter, ValidationError

    try:
        adapter = TypeAdapter(Recipe)
        recipe: Recipe = adapter.validate_python({**values, **_steps(values)})
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, p['loc']))} = {printable(p['input'], 60)!r}: {p['msg']}" for p in error.errors()
        ]
        raise InputError(
            f"the recipe has {len(problems)} wrong value{'s' * (len(problems) > 1)}: {'; '.join(problems)}."
        ) from error
    _check_ranges(recipe)
    _refuse_objects(recipe.task.kwargs, "task.kwargs")
    return recipe


def _steps(values: Mapping[str, Any]) -> dict[str, Any]:
    """The steps of `compress` as words: {prune: 0.5} is "prune 0.5"."""
    if "compress" not in values:
        return {}
    given = values["compress"]
    if not isinstance(given, (list, tuple)):
        raise _no_step(given)
    return {"compress": tuple(map(_words_of, given))}


def _words_of(step: Any) -> str:
    match step:
        case str():
            return step
        case Mapping() if len(step) == 1:
            ((kind, value),) = step.items()
            if isinstance(kind, str) and isinstance(value, (str, int, float)) and not isinstance(value, bool):
                return f"{kind} {value}"
    raise _no_step(step)


def _no_step(given: Any) -> InputError:
    return InputError(
        f"compress: {printable(given, 60)} is not understood. Allowed: a list of steps, each prune SHARE, low_rank RANK or "
        "quantise WIDTH, such as compress: [prune: 0.5, quantise: int4]."
    )


def with_options(values: Mapping[str, Any], options: Sequence[str]) -> dict[str, Any]:
    """Nested values with `stage.key=value` options put in.

    >>> with_options({"env": "CartPole-v1"}, ["collect.slots=8"])
    {'env': 'CartPole-v1', 'collect': {'slots': '8'}}
    >>> with_options({}, ["compress=[prune: 0.5, quantise: int4]", "race.rounds=2,4"])
    {'compress': ({'prune': 0.5}, {'quantise': 'int4'}), 'race': {'rounds': ('2', '4')}}
    >>> with_options({}, ["task.kwargs={max_episode_steps: 300}"])
    {'task': {'kwargs': {'max_episode_steps': 300}}}
    """
    merged: dict[str, Any] = {k: dict(v) if isinstance(v, Mapping) else v for k, v in values.items()}
    for option in options:
        path, equals, value = option.partition("=")
        parts = path.split(".")
        table = equals and _is_table(parts[:2])
        if table and len(parts) > 2:
            raise _no_table(".".join(parts[:2]), f"{{{'.'.join(parts[2:])}: {value}}}", option)
        if not equals or len(parts) > 2:
            raise InputError(
                f"option {printable(option)!r} is not understood. Allowed: KEY=VALUE or STAGE.KEY=VALUE, for example collect.slots=8."
            )
        if len(parts) == 2 and parts[0] not in _stages():
            raise unknown("stage", parts[0], _stages())
        parsed: Any = _several(path, value) if _is_tuple(parts) else (None if value.lower() == "none" else value)
        if table:
            parsed = _table(path, value)
        if len(parts) == 1:
            merged[path] = parsed
        else:
            stage = merged.get(parts[0])
            merged[parts[0]] = {**(stage if isinstance(stage, dict) else {}), parts[1]: parsed}
    return merged


def _several(path: str, text: str) -> tuple[Any, ...]:
    """A,B or, as a recipe has it, [A, B]."""
    if not text.strip().startswith("["):
        return tuple(v.strip() for v in text.split(",") if v.strip())
    values = _yaml(text)
    if not isinstance(values, list):
        raise InputError(f"option {path}={printable(text)} is no list. Allowed: A,B or, as in a recipe, [A, B].")
    return tuple(values)


def _table(path: str, text: str) -> dict[str, Any]:
    """{KEY: VALUE}, as a recipe or JSON has it."""
    values = _yaml(text)
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise _no_table(path, "{max_episode_steps: 300}", f"{path}={text}")
    return values


def _no_table(path: str, example: str, option: str) -> InputError:
    return InputError(
        f"option {printable(option)} is no table. Allowed: a table as in a recipe or JSON, in quotes: '{path}={printable(example)}'."
    )


def _yaml(text: str) -> Any:
    """The value of a piece of a recipe; None for what is none."""
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None


def _is_table(parts: list[str]) -> bool:
    return len(parts) == 2 and str(_field_types(parts).get(parts[1], "")).startswith("dict")


def _field_types(parts: list[str]) -> dict[str, Any]:
    """Of the stage, or of the recipe, that a dotted name lies in."""
    owner: Any = Recipe
    if len(parts) == 2:
        owner = next((type(f.default) for f in dataclasses.fields(Recipe) if f.name == parts[0]), Recipe)
    return {f.name: f.type for f in dataclasses.fields(owner)} if dataclasses.is_dataclass(owner) else {}


def _stages() -> list[str]:
    return [f.name for f in dataclasses.fields(Recipe) if dataclasses.is_dataclass(f.default)]


def _is_tuple(parts: list[str]) -> bool:
    return str(_field_types(parts).get(parts[-1], "")).startswith("tuple")


def _refuse_unknown(values: Mapping[str, Any], owner: type, prefix: str) -> None:
    fields = {f.name: f for f in dataclasses.fields(owner)}
    for key, value in values.items():
        if key not in fields:
            raise unknown(f"recipe key{' in ' + prefix if prefix else ''}", str(key), fields)
        default = fields[key].default
        if dataclasses.is_dataclass(default) and isinstance(value, Mapping):
            _refuse_unknown(value, type(default), key)
    if not prefix:
        _refuse_missing(values)


def _refuse_missing(values: Mapping[str, Any]) -> None:
    if values.get("teacher") is None:
        raise InputError("the recipe lacks teacher. Needed: teacher (a file), and env (an environment id) or data.")
    if values.get("env") is None and values.get("data") is None:
        raise InputError(
            "the recipe has neither env nor data. Needed: env (an environment id to play in), or data (recordings, where there is none)."
        )


def _refuse_objects(value: Any, where: str) -> None:
    """What cannot be written into recipe.yaml cannot be run again from it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _refuse_objects(key, f"a key of {where}")
            _refuse_objects(inner, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _refuse_objects(inner, where)
    elif type(value) not in (type(None), bool, int, float, str):
        raise InputError(
            f"{printable(where)} is {printable(type(value).__name__)}, which a recipe cannot hold. Allowed: numbers, text, lists and tables; "
            "for anything else pass env=FUNCTION that builds the environment."
        )


def _check_ranges(recipe: Recipe) -> None:
    problems = []
    for path, (low, high) in RANGES.items():
        value: Any = recipe
        for part in path.split("."):
            value = getattr(value, part)
        if value is not None and not (math.isfinite(value) and low <= value <= high):
            problems.append(f"{path} = {value:g}, allowed {low:g} to {high:g}")
    if recipe.verify.expect is not None and not math.isfinite(recipe.verify.expect):
        problems.append(f"verify.expect = {recipe.verify.expect:g}, allowed any finite return")
    if any(done < 1 for done in recipe.race.rounds):
        problems.append(f"race.rounds = {', '.join(map(str, recipe.race.rounds))}, allowed rounds from 1")
    if not recipe.students:
        problems.append("students is empty, allowed at least one such as mlp:16x16")
    if recipe.imitate.burn_in >= recipe.imitate.sequence:
        problems.append(
            f"imitate.burn_in = {recipe.imitate.burn_in}, allowed less than imitate.sequence = {recipe.imitate.sequence}"
        )
    if problems:
        raise InputError(f"out of range: {'; '.join(problems)}. Change the recipe or the flags.")
