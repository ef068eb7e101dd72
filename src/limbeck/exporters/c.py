"""C99: policy.c and policy.h, const weights, float32, no allocation, no global state.

No name from outside becomes code: identifiers are fixed but for a prefix of [a-z0-9_], and comments hold escaped
ASCII only. Constants are hexadecimal floats, exact in every locale and compiler.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from limbeck import spaces, storage
from limbeck.contracts import Array, Artifact, Blueprint, Gru, Head, Layer, Policy
from limbeck.errors import InputError, printable
from limbeck.exporters import ckernels
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
    return compiled_c.load(folder, contract.spec, contract.head, contract.keys)


def missing() -> str:
    return "" if compiled_c.find_compiler() else "no C compiler"


def generate(blueprint: Blueprint, prefix: str = PREFIX) -> tuple[str, str, int]:
    """The texts of policy.h and policy.c, and the bytes of the constants in them."""
    check_exportable(blueprint)
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", prefix):
        raise InputError(
            f"prefix {printable(prefix)!r} cannot begin C names. Allowed: a to z, then a to z, 0 to 9, _, at most 32."
        )
    body = _Body()
    _forward(blueprint, body)
    header, source = _header(blueprint), _source(blueprint, body)
    named = [text.replace("@p", prefix).replace("@P", prefix.upper()) for text in (header, source)]
    comment = _comment(blueprint)  # last, so that nothing in a name is ever replaced
    return comment + named[0], comment + named[1], body.constant_bytes


# ---------------------------------------------------------------- what goes into the file


@dataclass
class _Body:
    """Constants, statements and routines of one step, in the order they are needed."""

    constants: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    constant_bytes: int = 0
    widest: int = 1  # of the vectors between layers

    def constant(self, name: str, values: Array, ctype: str = "float") -> None:
        flat = values.reshape(-1)
        words = [literal(v) for v in flat] if ctype == "float" else [str(int(v)) for v in flat]
        rows = ",\n    ".join(", ".join(words[i : i + 8]) for i in range(0, len(words), 8))
        self.constants.append(f"static const @P_ALIGNED {ctype} {name}[{flat.size}] = {{\n    {rows}}};\n")
        self.constant_bytes += flat.size * {"float": 4, "uint8_t": 1, "uint16_t": 2, "uint32_t": 4, "int32_t": 4}[ctype]

    def add(self, *lines: str) -> None:
        self.lines += lines


def literal(value: float) -> str:
    """A float32 as an exact C99 constant.

    >>> literal(0.1), literal(-0.0), literal(float("inf"))
    ('0x1.99999ap-4f', '-0x0p+0f', 'INFINITY')
    """
    single = float(np.float32(value))
    if math.isinf(single):
        return "INFINITY" if single > 0 else "-INFINITY"
    mantissa, _, exponent = single.hex().partition("p")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{'-0x0' if mantissa == '-0x' else '0x0' if mantissa == '0x' else mantissa}p{exponent}f"


def _forward(blueprint: Blueprint, body: _Body) -> None:
    x, size = _input(blueprint, body)
    for i, layer in enumerate(blueprint.layers):
        x, size = _layer(i, layer, x, size, body, last=i == len(blueprint.layers) - 1)
    if x != "params":
        body.add(f"for (i = 0; i < {size}; i++)", f"    params[i] = {x}[i];")
    _action(blueprint.head, body)


def _input(blueprint: Blueprint, body: _Body) -> tuple[str, int]:
    """Indices, normaliser and history; names the vector that the first layer reads."""
    view, norm = blueprint.view, blueprint.normaliser
    size = spaces.flat_size(blueprint.spec.observation_space, view)
    if view.indices is None and norm is None and view.history == 1:
        return "obs", size
    value = "obs[i]"
    if view.indices is not None:
        top = max(view.indices, default=0)
        body.constant(
            "picked", np.array(view.indices), "uint8_t" if top < 256 else "uint16_t" if top < 65536 else "uint32_t"
        )
        value = "obs[picked[i]]"
    if norm is not None:
        body.constant("mean", norm.mean)
        body.constant("inverse_scale", (1.0 / norm.scale.astype(np.float64)).astype(np.float32))
        value = f"({value} - mean[i]) * inverse_scale[i]"
        if math.isfinite(norm.clip):
            body.used.add("clip")
            value = f"@p_clip({value}, {literal(-norm.clip)}, {literal(norm.clip)})"
    past = (view.history - 1) * size
    body.add(f"for (i = 0; i < {size}; i++)", f"    x[{past} + i] = {value};" if past else f"    x[i] = {value};")
    if past:
        body.add(
            f"for (i = 0; i < {past}; i++)",
            f"    x[i] = memory->fresh ? x[{past} + i % {size}] : memory->history[i];",
            f"for (i = 0; i < {past}; i++)",
            f"    memory->history[i] = x[{size} + i];",
            "memory->fresh = 0;",
        )
    body.widest = max(body.widest, past + size)
    return "x", past + size


def _layer(i: int, layer: Layer, x: str, size: int, body: _Body, last: bool) -> tuple[str, int]:
    if isinstance(layer, Gru):
        h, gates = layer.size, 3 * layer.size
        _dense(f"x{i}", layer.weight_x, layer.bias_x, x, "from_x", body)
        _dense(f"h{i}", layer.weight_h, layer.bias_h, f"memory->gru{i}", "from_h", body)
        body.used.add("gru")
        body.add(f"@p_gru(from_x, from_h, memory->gru{i}, {h});")
        body.widest = max(body.widest, gates)
        return f"memory->gru{i}", h
    outputs = int(layer.weight.shape[1])
    y = "params" if last else "y" if x == "x" else "x"
    body.widest = max(body.widest, outputs)
    done = _dense(str(i), layer.weight, layer.bias, x, y, body, layer.activation)
    if layer.activation != "identity" and not done:
        body.used.add(layer.activation)
        body.add(f"@p_{layer.activation}({y}, {outputs});")
    return y, outputs


def _dense(name: str, weight: Array, bias: Array, x: str, y: str, body: _Body, activation: str = "") -> bool:
    """One product; True where its activation is already applied."""
    n_in, n_out = weight.shape
    wide, deep = n_out >= ckernels.WIDE, n_in >= ckernels.DEEP
    kind = "wide" if wide else "narrow" if deep else "small"
    body.used.add(kind)
    body.constant(f"weight_{name}", weight if wide else weight.T)
    body.constant(f"bias_{name}", bias)
    relu = f", {int(activation == 'relu')}" if wide else ""
    body.add(f"@p_dense_{kind}(weight_{name}, bias_{name}, {x}, {y}, {n_in}, {n_out}{relu});")
    return wide and activation == "relu"


def _action(head: Head, body: _Body) -> None:
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


def _bounds(head: Head, body: _Body) -> None:
    n = sum(head.sizes)
    body.constant("low", np.array(head.low or [-np.inf] * n, np.float32))
    body.constant("high", np.array(head.high or [np.inf] * n, np.float32))
    body.used.add("clip")


# ---------------------------------------------------------------- the two files


def _header(blueprint: Blueprint) -> str:
    head = blueprint.head
    return f"""#ifndef @P_POLICY_H
#define @P_POLICY_H
#include <stdint.h>

#define @P_OBS {spaces.flat_size(blueprint.spec.observation_space, input_view(blueprint.view))}
#define @P_PARAMS {head.width}
#define @P_ACTIONS {action_count(head)}

typedef {"int32_t" if head.discrete else "float"} @p_action;
typedef struct {{
{_members(blueprint)}}} @p_state;

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


def _members(blueprint: Blueprint) -> str:
    members = []
    if (history := blueprint.view.history) > 1:
        size = spaces.flat_size(blueprint.spec.observation_space, blueprint.view)
        members += [f"float history[{(history - 1) * size}]", "int32_t fresh"]
    members += [f"float gru{i}[{x.size}]" for i, x in enumerate(blueprint.layers) if isinstance(x, Gru)]
    return "".join(f"    {m};\n" for m in members or ["char unused"])


def _source(blueprint: Blueprint, body: _Body) -> str:
    unbounded = any("INFINITY" in c for c in body.constants)
    parts = [
        '#include "policy.h"\n',
        "#include <math.h>\n" if body.used & ckernels.LIBM or unbounded else "",
        ckernels.library(body.used),
        "\n",
        *body.constants,
        _function("reset", "@p_state *memory", _reset_lines(blueprint)),
        _function("step", "@p_state *memory, const float *obs, float *params, @p_action *action", _step_lines(body)),
    ]
    return "".join(parts)


def _function(name: str, parameters: str, lines: list[str]) -> str:
    loops = ["int i;"] if any("i++" in line for line in lines) else []
    return f"\nvoid @p_{name}({parameters})\n{{\n" + "".join(f"    {line}\n" for line in loops + lines) + "}\n"


def _reset_lines(blueprint: Blueprint) -> list[str]:
    lines = ["memory->fresh = 1;"] if blueprint.view.history > 1 else []
    for i, layer in enumerate(blueprint.layers):
        if isinstance(layer, Gru):
            lines += [f"for (i = 0; i < {layer.size}; i++)", f"    memory->gru{i}[i] = 0.0f;"]
    return lines or ["memory->unused = 0;"]


def _step_lines(body: _Body) -> list[str]:
    uses = "\n".join(body.lines)
    buffers = [
        f"@P_ALIGNED float {name}[{body.widest}];"
        for name in ("x", "y", "from_x", "from_h")
        if re.search(rf"\b(?<!>){name}\b", uses)
    ]
    return buffers + ([] if "memory->" in uses else ["(void)memory;"]) + body.lines


def _comment(blueprint: Blueprint) -> str:
    parts = [
        f" *   {p['offset']} to {p['offset'] + p['count'] - 1}: {p['kind']} {comment_text(p['key'])}".rstrip()
        for p in input_layout(blueprint.spec.observation_space, blueprint.view.keys)[:64]
    ]
    return "\n".join(
        [
            f"/* Policy {comment_text(blueprint.name)} for {comment_text(blueprint.spec.name)}, written by Limbeck.",
            f" * {blueprint.parameters} parameters, {blueprint.multiply_adds} multiply-adds, head {comment_text(blueprint.head.kind)}.",
            " * Observation, float32:",
            *parts,
            " * Action: executed, that is offset, clipped, squashed and scaled as the environment wants it.",
            " * Numbers that are not finite: nothing crashes, discrete actions stay in range, continuous ones may be NaN.",
            " */\n",
        ]
    )


def comment_text(name: str) -> str:
    r"""A name from outside as it may stand in a C comment: JSON-escaped ASCII without * ? and backslash.

    >>> comment_text('a*/b??/\n')
    'a_/b__/_n'
    """
    return re.sub(r"[*?\\\x7f]", "_", json.dumps(name[:200])[1:-1])
