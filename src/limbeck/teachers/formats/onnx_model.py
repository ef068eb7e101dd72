"""ONNX by anybody: checked first, then its bytes (never a path) are given to ONNX Runtime, which plays it.

What a model takes and gives is told apart by names and shapes (`teachers.onnx_ports`, `teachers.onnx_feeds`). Models
that Limbeck exported say it themselves, in their metadata. Batches may be open or fixed: fixed ones are filled up.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from limbeck import blueprints, spaces
from limbeck.contracts import Array, Policy, Spec, Teacher, TeacherInfo
from limbeck.errors import InputError, printable
from limbeck.runtimes import onnx_session
from limbeck.teachers import files, modules, normaliser, onnx_feeds, onnx_ports, safetensors_file
from limbeck.teachers.files import File, Given, info
from limbeck.teachers.onnx_exported import ExportedPolicy
from limbeck.teachers.onnx_feeds import Feed
from limbeck.teachers.onnx_playing import Answer, ModelPolicy
from limbeck.teachers.onnx_ports import Port, role

SUFFIXES = (".onnx",)
OWN = "limbeck."  # prefix of the metadata of our own exports
DIVISORS = {"obs/255": 255.0}
_TAGS = frozenset(b"\x12\x1a\x22\x28\x32\x3a\x42\x72")  # fields that may follow ir_version in a ModelProto
_FLOATS = {1: ("<f4", "float_data"), 11: ("<f8", "double_data"), 10: ("<f2", "")}  # data_type -> how it is stored
MAX_ROW = 2**26  # numbers of one declared tensor, the batch aside


def recognises(file: File) -> bool:
    """A ModelProto begins with its version (field 1, below 32) and goes on with a field that a model has."""
    head = file.content[:3]
    begins = len(head) == 3 and head[0] == 0x08 and 1 <= head[1] < 32 and head[2] in _TAGS
    return begins and not safetensors_file.looks_like(file.content)


def load(file: File, given: Given) -> Teacher:
    given.refuse(file, "trust")
    if given.architecture is not None and given.architecture not in DIVISORS:
        raise InputError(
            f"--architecture {printable(given.architecture)} was given for {printable(file.name)}, which says itself what it computes. Allowed: {', '.join(DIVISORS)}."
        )
    model = _checked(file)
    spec = given.needs_spec(file)
    run = onnx_session.limited_session(file.content, file.name)
    own = _own(model)
    if own:
        given.refuse(file, "normaliser", "kind", "architecture")
        made = _facts(model) | {"limbeck": own}
        return Teacher(_exported(run, own, spec, given, file), info(file, "onnx", _algorithm(own, model), made))
    policy, notes, facts = _played(run, spec, given, file)
    about = info(file, "onnx", _algorithm(own, model), _facts(model) | facts, (), notes)
    return Teacher(policy, about)


def inspect(file: File) -> TeacherInfo:
    model = _checked(file)
    own = _own(model)
    facts = _facts(model) | ({"limbeck": own} if own else {})
    return info(file, "onnx", _algorithm(own, model), facts)


def _algorithm(own: Mapping[str, Any], model: Any) -> str:
    return str(own.get("name") or model.producer_name or "unknown")


# ---------------------------------------------------------------- the file


def _checked(file: File) -> Any:
    """The model once it is known to be whole, self-contained, finite and of ordinary size."""
    model = onnx_session.checked(file.content, file.name)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        size = math.prod(d.dim_value or 1 for d in value.type.tensor_type.shape.dim)
        if size > MAX_ROW:
            raise InputError(
                f"{printable(file.name)} declares {printable(value.name, 60)!r} with {size:,} numbers. Allowed: {MAX_ROW:,}. Export it again."
            )
    for tensor in model.graph.initializer:
        values = _values(tensor)
        if values is not None and values.size > 1 and not np.isfinite(values).all():
            raise InputError(
                f"{printable(file.name)}: {printable(tensor.name, 60)!r} holds NaN or infinite numbers. Export a sound checkpoint."
            )
    return model


def _values(tensor: Any) -> Array | None:
    """The numbers of a float tensor, None for other types; its size was compared with its shape by the checker."""
    if tensor.data_type not in _FLOATS:
        return None
    dtype, field = _FLOATS[tensor.data_type]
    if tensor.raw_data:
        return np.frombuffer(tensor.raw_data, dtype)
    return np.array(getattr(tensor, field)) if field else None


def _facts(model: Any) -> dict[str, object]:
    def told(values: Any) -> list[str]:
        return [
            f"{printable(v.name, 60)} [{', '.join(printable(d.dim_param, 20) or str(d.dim_value or '?') for d in v.type.tensor_type.shape.dim)}]"
            for v in list(values)[:16]
        ]

    weights = {t.name for t in model.graph.initializer}
    return {
        "inputs": told(v for v in model.graph.input if v.name not in weights),
        "outputs": told(model.graph.output),
        "operators": sorted({printable(node.op_type, 40) for node in model.graph.node})[:40],
        "parameters": sum(math.prod(t.dims) for t in model.graph.initializer if t.data_type in _FLOATS),
        "opset": max((i.version for i in model.opset_import), default=0),
    }


# ---------------------------------------------------------------- our own exports


def _own(model: Any) -> dict[str, Any]:
    """What Limbeck wrote into the model, {} for models of others."""
    try:
        return {p.key[len(OWN) :]: json.loads(p.value[: 2**20]) for p in model.metadata_props if p.key.startswith(OWN)}
    except (ValueError, RecursionError) as error:
        raise InputError(f"the model's own description is damaged: {printable(error)}. Export it again.") from error


def _exported(run: Any, own: Mapping[str, Any], spec: Spec, given: Given, file: File) -> Policy:
    """The model as the policy that its metadata describes, on the task's spaces."""
    try:
        said, view = blueprints.head_from_json(own["head"]), blueprints.view_from_json(own["view"])
    except blueprints.DAMAGE as error:
        raise InputError(
            f"{printable(file.name)}: its description is damaged ({type(error).__name__}). Export it again."
        ) from error
    head = spaces.head_for(spec.action_space, said.kind)
    if given.view is not None and given.view.keys is not None:
        view = replace(view, keys=given.view.keys)
    if (head.sizes, head.start) != (said.sizes, said.start) or not np.allclose(
        [*head.low, *head.high], [*said.low, *said.high], rtol=1e-5
    ):
        raise InputError(
            f"{printable(file.name)} acts with {said.kind} {said.sizes}, {printable(spec.name)} wants {head.sizes} within its own bounds. Give the environment it was made for."
        )
    spaces.check_view(spec.observation_space, view)
    return ExportedPolicy(run, spec, head, view, file.name)


# ---------------------------------------------------------------- models of others


def _played(run: Any, spec: Spec, given: Given, file: File) -> tuple[Policy, tuple[str, ...], dict[str, object]]:
    if given.kind is not None and given.kind not in modules.KINDS:
        raise InputError(f"--kind {printable(given.kind)} is unknown. Allowed: {', '.join(modules.KINDS)}.")
    wiring = onnx_ports.wire(
        onnx_ports.ports(run.get_inputs(), file.name), onnx_ports.ports(run.get_outputs(), file.name), file.name
    )
    fed = onnx_feeds.feeds(wiring.seen, spec, given.view, file.name)
    notes = tuple(note for feed in fed for note in feed.notes)
    if given.architecture is not None:
        fed = tuple(replace(feed, divide=DIVISORS[given.architecture]) for feed in fed)
        notes = tuple(note for note in notes if "obs/255" not in note)
    facts: dict[str, object] = {}
    if given.normaliser is not None:
        fed, facts = _normalised(fed, given, file)
    policy = ModelPolicy(run, spec, wiring, fed, file.name)
    answer = choose(policy.trial(), wiring.answers, spec.action_space, given.kind, file.name)
    policy.answer = answer
    policy.check()
    facts |= {"head": answer.head.kind, "memory": [m.into.name for m in wiring.memory], "reads": list(answer.names)}
    return policy, (*notes, *answer.notes), facts


def _normalised(fed: tuple[Feed, ...], given: Given, file: File) -> tuple[tuple[Feed, ...], dict[str, object]]:
    assert given.normaliser is not None
    if len(fed) != 1 or fed[0].whole:
        raise InputError(
            f"--normaliser was given for {printable(file.name)}, which takes several inputs. Allowed: one of floats."
        )
    beside = files.read(Path(given.normaliser))
    found = normaliser.read(beside.content, beside.name, fed[0].space, fed[0].view)
    return (replace(fed[0], normalising=found),), {"normaliser_sha256": beside.sha256}


def choose(
    said: Mapping[str, Array], outputs: tuple[Port, ...], space: gym.Space[Any], kind: str | None, name: str
) -> Answer:
    """What the model's answers mean in an action space: by their names, then by what fits. `said`: [4, ...] by name."""
    roles = {port.name: role(port) for port in outputs}
    value = next((n for n, r in roles.items() if r == "value" and said[n][0].size == 1), None)
    for names, its_kind in _readings(roles, space, kind):
        parts = _parts([said[n] for n in names], [roles[n] for n in names], space)
        try:
            head, form = modules.interpret(modules.arrays(parts, name), space, its_kind, name)
        except InputError:
            continue
        note = () if kind is not None or roles[names[0]] != "unnamed" else (_guess(names[0], head.kind, form),)
        others = [n for n, r in roles.items() if r != "value" and n not in names]
        unread = (f"its output {', '.join(map(printable, others))} is not used",) if others else ()

        def assemble(arrays: list[Array], roles_: tuple[str, ...] = tuple(roles[n] for n in names)) -> Any:
            return _parts(arrays, list(roles_), space)

        return Answer(names, head, form, assemble, value if value not in names else None, (*note, *unread))
    told = ", ".join(
        f"{printable(n, 60)} {a.dtype}[batch, {', '.join(map(str, a.shape[1:]))}]" for n, a in said.items()
    )
    raise InputError(
        f"{printable(name)} gives {told} for actions {space}{f' as {kind}' if kind else ''}: no such answer fits. Allowed: logits, q_values, probs, mean (with std or log_std) or action of the right width; --kind says which."
    )


def _guess(name: str, kind: str, form: str) -> str:
    what = "actions" if form == "actions" else f"{kind} rows" if form == "rows" else form
    return f"its output {printable(name, 60)!r} is read as {what}; --kind q, probabilities ... says otherwise"


def _readings(
    roles: Mapping[str, str], space: gym.Space[Any], kind: str | None
) -> list[tuple[tuple[str, ...], str | None]]:
    """Outputs in the order in which they are tried, each with the kind that its name implies."""
    of: Callable[..., list[str]] = lambda *wanted: [n for n, r in roles.items() if r in wanted]  # noqa: E731
    found: list[tuple[tuple[str, ...], str | None]] = []
    stds = of("std", "log_std")
    if isinstance(space, gym.spaces.Box):
        for mean in of("mean", "action", "unnamed") if stds else []:
            found.append(((mean, stds[0]), kind))
        found += [((n,), kind) for n in of("mean", "action", "logits", "unnamed")]
        return found
    if isinstance(space, gym.spaces.MultiDiscrete) and len(of("logits")) > 1:
        found.append((tuple(of("logits")), kind))
    if kind == "q":
        return [((n,), kind) for n in of("q", "unnamed", "logits", "value", "action")]
    if kind == "probabilities":
        return [((n,), kind) for n in of("probabilities", "unnamed", "action")]
    found += [((n,), kind) for n in of("logits")]
    found += [((n,), kind or "q") for n in of("q") if kind is None]
    found += [((n,), "probabilities") for n in of("probabilities") if kind is None]
    return found + [((n,), kind) for n in of("unnamed", "action", "mean")]


def _parts(arrays: list[Array], roles: list[str], space: gym.Space[Any]) -> Any:
    """The arrays of one reading as a callable would return them: one array, or (mean, std)."""
    if len(arrays) == 1:
        return arrays[0]
    if roles[1] in ("std", "log_std"):
        mean, std = arrays
        std = np.exp(np.clip(std, -20, 10)) if roles[1] == "log_std" else std
        return mean, np.broadcast_to(std.reshape(-1, *mean.shape[1:]) if std.size >= mean[0].size else std, mean.shape)
    return np.concatenate([a.reshape(len(a), -1) for a in arrays], axis=1)
