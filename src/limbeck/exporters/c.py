"""C99: one header, const weights, float32, no allocation, no global state; it also compiles as C++.

The header declares; the one source that defines <PREFIX>_IMPLEMENTATION before including it also holds the code, so
that two policies with different prefixes live in one program and nothing but a #include goes into a build. No name from
outside becomes code: identifiers are fixed but for a prefix of [a-z0-9_], and comments hold escaped ASCII only. Constants
are hexadecimal floats, exact in every locale and compiler.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from limbeck import distributions, spaces, storage
from limbeck.contracts import (
    Artifact,
    Blueprint,
    Head,
    Layer,
    Normaliser,
    Parallel,
    Policy,
    Quantise,
    QuantisedGru,
    Shared,
    Tree,
    memory_of,
)
from limbeck.errors import InputError, printable
from limbeck.exporters import Backend
from limbeck.exporters.ccode import dispatch as cdispatch
from limbeck.exporters.ccode import guard as cguard
from limbeck.exporters.ccode import kernels as ckernels
from limbeck.exporters.ccode import layers as clayers
from limbeck.exporters.ccode import quantised_memory as cmemory
from limbeck.exporters.ccode.body import Body, Row, literal
from limbeck.exporters.contract import Contract, action_count, check_exportable, input_layout, input_view
from limbeck.runtimes import compiled_c, emulated, firmware

PREFIX = "limbeck"
COMPILERS = {"gcc": "gcc libc6-dev", "clang": "clang"}  # and their packages
NO_COMPILER = "C written, not proved here: no C compiler"


def export(blueprint: Blueprint, folder: Path, prefix: str = PREFIX) -> Artifact:
    """Write policy.h; the size is what the compiled object keeps in memory, or else its constants'."""
    text, constant_bytes = generate(blueprint, prefix)
    storage.write_text(folder / compiled_c.FILE, text)
    size = compiled_c.object_size(folder)
    note = NO_COMPILER if size is None else f"{constant_bytes:,} of its bytes are constants"
    return Artifact("c", folder, (compiled_c.FILE,), size or constant_bytes, size is not None, note)


def load(folder: Path, contract: Contract) -> Policy:
    """Compile and play the C files of an artefact."""
    return compiled_c.load(folder, contract.spec, contract.head, contract.view)


def missing() -> str:
    return "" if compiled_c.find_compiler() else "no C compiler"


def backends(folder: Path, contract: Contract) -> Sequence[Backend]:
    """The compilers of this machine, the one of `load` first, then the microcontrollers that QEMU emulates."""
    what = (folder, contract.spec, contract.head, contract.view)
    found = compiled_c.find_compiler()
    default = compiled_c.name_of(found) if found else ""
    own = [Backend(default, "", partial(compiled_c.load, *what))] if found else []
    for name, package in COMPILERS.items():
        if name != default:
            lacking = "" if shutil.which(name) else f"no {name}: apt-get install {package}"
            own.append(Backend(name, lacking, partial(compiled_c.load, *what, command=(name,))))
    boards = (Backend(name, firmware.missing(name), partial(emulated.load, *what, name)) for name in firmware.BOARDS)
    return [*own, *boards]


def generate(blueprint: Blueprint, prefix: str = PREFIX) -> tuple[str, int]:
    """The text of policy.h, and the bytes of the constants in it."""
    check_exportable(blueprint)
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", prefix):
        raise InputError(
            f"prefix {printable(prefix)!r} cannot begin C names. Allowed: a to z, then a to z, 0 to 9, _, at most 32."
        )
    body = Body()
    _forward(blueprint, body)
    text = _declarations(blueprint, body) + _implementation(blueprint, body)
    named = text.replace("@p", prefix).replace("@P", prefix.upper())
    return _comment(blueprint, body, prefix) + named, body.constant_bytes  # nothing in a name is ever replaced


# ---------------------------------------------------------------- one step


def _forward(blueprint: Blueprint, body: Body) -> None:
    head = blueprint.head
    clayers.write(blueprint.layers, _input(blueprint, body), Row("params", head.width), body)
    if blueprint.view.mask is not None:
        begin = spaces.flat_size(blueprint.spec.observation_space, input_view(blueprint.view))
        # written so that a mask that is no number forbids
        body.each(head.width, f"params[i] = obs[{begin} + i] > 0.0f ? params[i] : {literal(distributions.FORBIDDEN)};")
    _action(head, body)


def _input(blueprint: Blueprint, body: Body) -> Row:
    """Indices, guard, normaliser and history: the vector that the first layer reads."""
    view, obs = blueprint.view, "obs[i]"
    size = spaces.flat_size(blueprint.spec.observation_space, view)
    if view.indices is not None:
        top = max(view.indices, default=0)
        ctype = "uint8_t" if top < 256 else "uint16_t" if top < 65536 else "uint32_t"
        obs = f"obs[{body.constant('picked', np.array(view.indices), ctype)}[i]]"
    guarded, past = cguard.level(blueprint, size) > 0, (view.history - 1) * size
    plain = obs == "obs[i]" and blueprint.normaliser is None and view.history == 1 and not guarded
    x = Row("obs", size) if plain else body.take(past + size)
    now = x.part(past, size)
    cguard.write(blueprint, obs, now, body)
    value = now["i"] if guarded else obs
    if blueprint.normaliser is not None:
        value = _normalised(value, blueprint.normaliser, _steps(blueprint.layers), body)
    if not plain and value != now["i"]:
        body.each(size, f"{now['i']} = {value};")
    if past:
        fresh = "0.0f" if view.padding == "zero" else f"{x.at}[{past} + i % {size}]"
        body.each(past, f"{x.at}[i] = memory->fresh ? {fresh} : memory->history[i];")
        body.each(past, f"memory->history[i] = {x.at}[{size} + i];")
        body.add("memory->fresh = 0;")
    return x


def _steps(layers: Sequence[Layer]) -> bool:
    """Whether the last bit of a normalised number can matter: where layers compare it or round it to a level."""
    inner = [layer.layers for layer in layers if isinstance(layer, Shared)]
    inner += [branch for layer in layers if isinstance(layer, Parallel) for branch in layer.branches]
    return any(isinstance(layer, Quantise | Tree) for layer in layers) or any(map(_steps, inner))


def _normalised(value: str, norm: Normaliser, exact: bool, body: Body) -> str:
    """The expression of one number; statistics that are all the same, as those of images, are written once.

    `exact`: divided as the reference does it; else a product with the inverse, which is faster and half a unit in the
    last place farther off.
    """
    inverse = (1.0 / norm.scale.astype(np.float64)).astype(np.float32)
    scale = ("scale", norm.scale) if exact else ("inverse_scale", inverse)
    words = [
        literal(values[0]) if (values == values[0]).all() else f"{body.constant(name, values)}[i]"
        for name, values in (("mean", norm.mean), scale)
    ]
    value = f"({value} - {words[0]})" if norm.mean.any() else value
    value = f"{value} {'/' if exact else '*'} {words[1]}"
    if math.isfinite(norm.clip):
        body.used.add("clip")
        value = f"@p_clip({value}, {literal(-norm.clip)}, {literal(norm.clip)})"
    return value


def _action(head: Head, body: Body) -> None:
    n = action_count(head)
    starts = head.start or (0,) * n
    if any(not -(2**31) <= s < 2**31 - max(head.sizes) for s in starts):
        raise InputError(f"action offsets {head.start} do not fit 32 bits. Allowed: smaller ones.")
    match head.kind:
        case "categorical" | "q" | "multicategorical":
            body.used.add("argmax")
            begin = 0
            for k, (width, start) in enumerate(zip(head.sizes, starts, strict=True)):
                offset = f" + {start}" if start > 0 else f" - {-start}" if start else ""
                body.add(f"action[{k}] = @p_argmax(params{f' + {begin}' if begin else ''}, {width}){offset};")
                begin += width
        case "bernoulli":
            body.add(f"for (i = 0; i < {n}; i++)", "    action[i] = params[i] > 0.0f;")
        case "squashed" | "tanh":
            low, high = _bounds(head, body)
            body.used |= {"tanh", "bound"}
            body.each(n, "action[i] = params[i];")
            body.add(f"@p_tanh(action, {n});")
            scaled = f"{low}[i] + 0.5f * (action[i] + 1.0f) * ({high}[i] - {low}[i])"
            body.each(n, f"action[i] = @p_bound({scaled}, {low}[i], {high}[i]);")
        case _:
            low, high = _bounds(head, body)
            body.used.add("bound")
            body.each(n, f"action[i] = @p_bound(params[i], {low}[i], {high}[i]);")


def _bounds(head: Head, body: Body) -> tuple[str, str]:
    """The names of the least and greatest actions; where there is none, those of float32: an action is a number."""
    n, most = sum(head.sizes), float(np.finfo(np.float32).max)
    low, high = np.array(head.low or [-most] * n), np.array(head.high or [most] * n)
    low, high = np.clip(low, -most, most), np.clip(high, -most, most)
    return body.constant("low", low.astype(np.float32)), body.constant("high", high.astype(np.float32))


# ---------------------------------------------------------------- the header


def _declarations(blueprint: Blueprint, body: Body) -> str:
    head, space, view = blueprint.head, blueprint.spec.observation_space, blueprint.view
    scratch = sum(body.placed()[1].values())
    members = "".join(f"    {m};\n" for m in _carried(blueprint))
    last = f"    float scratch[{scratch}];\n" if scratch else ""
    return f"""#ifndef @P_POLICY_H
#define @P_POLICY_H
#include <stdint.h>

#define @P_OBS {spaces.input_size(space, view)}
#define @P_PARAMS {head.width}
#define @P_ACTIONS {action_count(head)}
#define @P_GUARD {cguard.level(blueprint, spaces.flat_size(space, view))}
typedef {"int32_t" if head.discrete else "float"} @p_action;
typedef struct {{
{members}    uint32_t steps;   /* since the last reset */
    uint32_t strange; /* of them, those whose observation had numbers outside */
{last}}} @p_state;

#ifdef __cplusplus
extern "C" {{
#endif
/* Before the first observation of every episode; both counters begin at 0. */
void @p_reset(@p_state *memory);
/* One step: obs [@P_OBS] in, the head's numbers params [@P_PARAMS] and the executed action [@P_ACTIONS] out. */
void @p_step(@p_state *memory, const float *obs, float *params, @p_action *action);
/* How many numbers of an observation are not finite or outside of what training saw; changes nothing. */
uint32_t @p_outside(const float *obs);
#ifdef __cplusplus
}}
#endif
#endif
"""


def _carried(blueprint: Blueprint) -> list[str]:
    """The members of the state that are carried from step to step."""
    members = []
    if (history := blueprint.view.history) > 1:
        size = spaces.flat_size(blueprint.spec.observation_space, blueprint.view)
        members += [f"float history[{(history - 1) * size}]", "int32_t fresh"]
    return members + [f"{_kept(name)} {_member(name)}[{size}]" for name, size in memory_of(blueprint.layers)]


def _kept(name: str) -> str:
    """The C type of a memory's numbers."""
    return cmemory.MEMORY if name.startswith(QuantisedGru.kind) else "float"


def _member(name: str) -> str:
    return name.replace(".", "_")


def _implementation(blueprint: Blueprint, body: Body) -> str:
    unbounded = any("INFINITY" in c for c in body.constants)
    step = _function("step", "@p_state *memory, const float *obs, float *params, @p_action *action", _step_lines(body))
    dispatched = cdispatch.worth(body.used, blueprint.multiply_adds)
    parts = [
        "\n#if defined(@P_IMPLEMENTATION) && !defined(@P_IMPLEMENTED)\n#define @P_IMPLEMENTED\n",
        "#include <math.h>\n" if body.used & ckernels.LIBM or unbounded else "",
        cdispatch.BEGIN * dispatched,
        ckernels.library(body.used),
        "\n",
        *body.constants,
        *body.functions,
        _function("reset", "@p_state *memory", _reset_lines(blueprint)),
        cdispatch.step(step, body.used) if dispatched else step,
        cdispatch.END * dispatched,
        "#endif\n",
    ]
    return "".join(parts)


def _function(name: str, parameters: str, lines: list[str]) -> str:
    counters = sorted(set(re.findall(r"for \((\w+) = 0;", "\n".join(lines))))
    loops = [f"int {', '.join(counters)};"] if counters else []
    return f"\nvoid @p_{name}({parameters})\n{{\n" + "".join(f"    {line}\n" for line in loops + lines) + "}\n"


def _reset_lines(blueprint: Blueprint) -> list[str]:
    lines = ["memory->fresh = 1;"] if blueprint.view.history > 1 else []
    for name, size in memory_of(blueprint.layers):
        lines += [f"for (i = 0; i < {size}; i++)", f"    memory->{_member(name)}[i] = 0;"]
    return [*lines, "memory->steps = memory->strange = 0;"]


def _step_lines(body: Body) -> list[str]:
    stack, scratch = body.placed()
    vectors = [f"@P_ALIGNED float {name}[{size}];" for name, size in stack.items()]
    begin = 0
    for name, size in scratch.items():
        vectors.append(f"float *const {name} = memory->scratch{f' + {begin}' if begin else ''};")
        begin += size
    return vectors + body.lines


def _comment(blueprint: Blueprint, body: Body, prefix: str) -> str:
    parts = [
        f" *   {p['offset']} to {p['offset'] + p['count'] - 1}: {p['kind']} {comment_text(p['key'])}".rstrip()
        for p in input_layout(blueprint.spec.observation_space, blueprint.view)[:64]
    ]
    guard = cguard.level(blueprint, spaces.flat_size(blueprint.spec.observation_space, blueprint.view))
    scratch = [f"{name} ({4 * size} bytes)" for name, size in body.placed()[1].items()]
    return "\n".join(
        [
            f"/* Policy {comment_text(blueprint.name)} for {comment_text(blueprint.spec.name)}, written by Limbeck.",
            f" * {blueprint.parameters} parameters, {blueprint.multiply_adds} multiply-adds, head {comment_text(blueprint.head.kind)}.",
            " * Observation, float32:",
            *parts,
            " * Action: executed, that is offset, clipped, squashed and scaled as the environment wants it.",
            f" * Guard: {cguard.WORDS[guard]}.",
            " *",
            " * Use it in one source, and without the first line in any other:",
            f" *     #define {prefix.upper()}_IMPLEMENTATION",
            ' *     #include "policy.h"',
            f" *     {prefix}_state memory; {prefix}_reset(&memory); {prefix}_step(&memory, obs, params, action);",
            *[f" * The state also holds vectors too long for a small stack: {', '.join(scratch)}."] * bool(scratch),
            " */\n",
        ]
    )


def comment_text(name: str) -> str:
    r"""A name from outside as it may stand in a C comment: JSON-escaped ASCII without * ? and backslash.

    >>> comment_text('a*/b??/\n')
    'a_/b__/_n'
    """
    return re.sub(r"[*?\\\x7f]", "_", json.dumps(name[:200])[1:-1])
