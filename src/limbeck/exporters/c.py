"""C99: policy.c and policy.h, const weights, float32, no allocation, no global state.

No name from outside becomes code: identifiers are fixed but for a prefix of [a-z0-9_], and comments hold escaped
ASCII only. Constants are hexadecimal floats, exact in every locale and compiler.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np

from limbeck import distributions, spaces, storage
from limbeck.contracts import Artifact, Blueprint, Head, Normaliser, Policy, memory_of
from limbeck.errors import InputError, printable
from limbeck.exporters import ckernels, clayers
from limbeck.exporters.cbody import Body, Row, literal
from limbeck.exporters.contract import Contract, action_count, check_exportable, input_layout, input_view
from limbeck.runtimes import compiled_c

PREFIX = "limbeck"
NO_COMPILER = "C written, not proved here: no C compiler"


def export(blueprint: Blueprint, folder: Path, prefix: str = PREFIX) -> Artifact:
    """Write policy.c and policy.h; the size is what the compiled object keeps in memory, or else its constants'."""
    header, source, constant_bytes = generate(blueprint, prefix)
    storage.write_text(folder / "policy.h", header)
    storage.write_text(folder / "policy.c", source)
    size = compiled_c.object_size(folder)
    note = NO_COMPILER if size is None else f"{constant_bytes} of its bytes are constants"
    return Artifact("c", folder, ("policy.c", "policy.h"), size or constant_bytes, size is not None, note)


def load(folder: Path, contract: Contract) -> Policy:
    """Compile and play the C files of an artefact."""
    return compiled_c.load(folder, contract.spec, contract.head, contract.view)


def missing() -> str:
    return "" if compiled_c.find_compiler() else "no C compiler"


def generate(blueprint: Blueprint, prefix: str = PREFIX) -> tuple[str, str, int]:
    """The texts of policy.h and policy.c, and the bytes of the constants in them."""
    check_exportable(blueprint)
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", prefix):
        raise InputError(
            f"prefix {printable(prefix)!r} cannot begin C names. Allowed: a to z, then a to z, 0 to 9, _, at most 32."
        )
    body = Body()
    _forward(blueprint, body)
    header, source = _header(blueprint, body), _source(blueprint, body)
    named = [text.replace("@p", prefix).replace("@P", prefix.upper()) for text in (header, source)]
    comment = _comment(blueprint, body)  # last, so that nothing in a name is ever replaced
    return comment + named[0], comment + named[1], body.constant_bytes


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
    """Indices, normaliser and history: the vector that the first layer reads."""
    view = blueprint.view
    size = spaces.flat_size(blueprint.spec.observation_space, view)
    if view.indices is None and blueprint.normaliser is None and view.history == 1:
        return Row("obs", size)
    value = "obs[i]"
    if view.indices is not None:
        top = max(view.indices, default=0)
        ctype = "uint8_t" if top < 256 else "uint16_t" if top < 65536 else "uint32_t"
        value = f"obs[{body.constant('picked', np.array(view.indices), ctype)}[i]]"
    if blueprint.normaliser is not None:
        value = _normalised(value, blueprint.normaliser, body)
    past = (view.history - 1) * size
    x = body.take(past + size)
    body.each(size, f"{x.at}[{past} + i] = {value};" if past else f"{x.at}[i] = {value};")
    if past:
        fresh = "0.0f" if view.padding == "zero" else f"{x.at}[{past} + i % {size}]"
        body.each(past, f"{x.at}[i] = memory->fresh ? {fresh} : memory->history[i];")
        body.each(past, f"memory->history[i] = {x.at}[{size} + i];")
        body.add("memory->fresh = 0;")
    return x


def _normalised(value: str, norm: Normaliser, body: Body) -> str:
    """The expression of one number; statistics that are all the same, as those of images, are written once."""
    inverse = (1.0 / norm.scale.astype(np.float64)).astype(np.float32)
    words = [
        literal(values[0]) if (values == values[0]).all() else f"{body.constant(name, values)}[i]"
        for name, values in (("mean", norm.mean), ("inverse_scale", inverse))
    ]
    value = f"({value} - {words[0]}) * {words[1]}" if norm.mean.any() else f"{value} * {words[1]}"
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
            _bounds(head, body)
            half = "0.5f * (tanhf(params[i]) + 1.0f) * (high[i] - low[i])"
            body.add(f"for (i = 0; i < {n}; i++)", f"    action[i] = @p_clip(low[i] + {half}, low[i], high[i]);")
            body.used.add("squash")
        case _:
            _bounds(head, body)
            body.add(f"for (i = 0; i < {n}; i++)", "    action[i] = @p_clip(params[i], low[i], high[i]);")


def _bounds(head: Head, body: Body) -> None:
    n = sum(head.sizes)
    body.constant("low", np.array(head.low or [-np.inf] * n, np.float32))
    body.constant("high", np.array(head.high or [np.inf] * n, np.float32))
    body.used.add("clip")


# ---------------------------------------------------------------- the two files


def _header(blueprint: Blueprint, body: Body) -> str:
    head = blueprint.head
    carried = _carried(blueprint)
    scratch = sum(body.placed()[1].values())
    members = "".join(f"    {m};\n" for m in carried + [f"float scratch[{scratch}]"] * bool(scratch))
    return f"""#ifndef @P_POLICY_H
#define @P_POLICY_H
#include <stdint.h>

#define @P_OBS {spaces.input_size(blueprint.spec.observation_space, blueprint.view)}
#define @P_PARAMS {head.width}
#define @P_ACTIONS {action_count(head)}
{f"#define @P_SCRATCH {scratch}" if scratch else ""}
typedef {"int32_t" if head.discrete else "float"} @p_action;
typedef struct {{
{members or "    char unused;" + chr(10)}}} @p_state;

#ifdef __cplusplus
extern "C" {{
#endif
/* Before the first observation of every episode. */
void @p_reset(@p_state *memory);
/* One step: obs [@P_OBS] in, the head's numbers params [@P_PARAMS] and the executed action [@P_ACTIONS] out. */
void @p_step(@p_state *memory, const float *obs, float *params, @p_action *action);
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
    return members + [f"float {_member(name)}[{size}]" for name, size in memory_of(blueprint.layers)]


def _member(name: str) -> str:
    return name.replace(".", "_")


def _source(blueprint: Blueprint, body: Body) -> str:
    unbounded = any("INFINITY" in c for c in body.constants)
    parts = [
        '#include "policy.h"\n',
        "#include <math.h>\n" if body.used & ckernels.LIBM or unbounded else "",
        ckernels.library(body.used),
        "\n",
        *body.constants,
        _function("reset", "@p_state *memory", _reset_lines(blueprint, body)),
        _function("step", "@p_state *memory, const float *obs, float *params, @p_action *action", _step_lines(body)),
    ]
    return "".join(parts)


def _function(name: str, parameters: str, lines: list[str]) -> str:
    counters = sorted(set(re.findall(r"for \((\w+) = 0;", "\n".join(lines))))
    loops = [f"int {', '.join(counters)};"] if counters else []
    return f"\nvoid @p_{name}({parameters})\n{{\n" + "".join(f"    {line}\n" for line in loops + lines) + "}\n"


def _reset_lines(blueprint: Blueprint, body: Body) -> list[str]:
    lines = ["memory->fresh = 1;"] if blueprint.view.history > 1 else []
    for name, size in memory_of(blueprint.layers):
        lines += [f"for (i = 0; i < {size}; i++)", f"    memory->{_member(name)}[i] = 0.0f;"]
    return lines or ["(void)memory;" if body.placed()[1] else "memory->unused = 0;"]


def _step_lines(body: Body) -> list[str]:
    stack, scratch = body.placed()
    vectors = [f"@P_ALIGNED float {name}[{size}];" for name, size in stack.items()]
    begin = 0
    for name, size in scratch.items():
        vectors.append(f"float *const {name} = memory->scratch{f' + {begin}' if begin else ''};")
        begin += size
    unused = not scratch and not any("memory->" in line for line in body.lines)
    return vectors + ["(void)memory;"] * unused + body.lines


def _comment(blueprint: Blueprint, body: Body) -> str:
    parts = [
        f" *   {p['offset']} to {p['offset'] + p['count'] - 1}: {p['kind']} {comment_text(p['key'])}".rstrip()
        for p in input_layout(blueprint.spec.observation_space, blueprint.view)[:64]
    ]
    scratch = [f"{name} ({4 * size} bytes)" for name, size in body.placed()[1].items()]
    return "\n".join(
        [
            f"/* Policy {comment_text(blueprint.name)} for {comment_text(blueprint.spec.name)}, written by Limbeck.",
            f" * {blueprint.parameters} parameters, {blueprint.multiply_adds} multiply-adds, head {comment_text(blueprint.head.kind)}.",
            " * Observation, float32:",
            *parts,
            " * Action: executed, that is offset, clipped, squashed and scaled as the environment wants it.",
            " * Numbers that are not finite: nothing crashes, discrete actions stay in range, continuous ones may be NaN.",
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
