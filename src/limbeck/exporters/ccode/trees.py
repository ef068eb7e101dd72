"""Trees and sparse layers as C: small trees as nested ifs that a person can read, large ones as tables and one loop.

Sums are written in the order of the places they read, so every build without contraction rounds as numpy does. A
comparison with NaN is false and goes right, as everywhere.
"""

from __future__ import annotations

import numpy as np

from limbeck.contracts import Sparse, Tree
from limbeck.exporters.ccode.body import Body, Row, literal

NESTED = 64  # splits up to which a tree is written as ifs
DEEPEST_NESTED = 24  # and questions on its longest path


def tree(name: str, layer: Tree, x: Row, y: Row, body: Body) -> None:
    """Statements that find the leaf and write what it says."""
    body.add("{")
    body.depth += 1
    if len(layer.threshold) <= NESTED and layer.depth <= DEEPEST_NESTED:
        body.add("int leaf;")
        _ask(layer, 0, x, body)
    else:
        _walk(name, layer, x, body)
    _say(name, layer, y, body)
    body.depth -= 1
    body.add("}")


def sparse(layer: Sparse, x: Row, y: Row, body: Body) -> None:
    """One statement per output."""
    if not any(layer.reads):
        body.add(f"(void){x.at};")
    sizes = np.cumsum([len(places) for places in layer.reads])[:-1]
    for o, (places, weights) in enumerate(zip(layer.reads, np.split(layer.weight, sizes), strict=True)):
        parts = [literal(layer.offset[o])] if o in layer.biased else []
        if places:
            total = _sum(places, weights, x)
            parts.append(f"({total})" if parts else total)
        body.add(f"{y[str(o)]} = {' + '.join(parts) or '0.0f'};")


def _ask(layer: Tree, split: int, x: Row, body: Body) -> None:
    """One split as an if; leaves as assignments of their number, or of their label."""
    places = layer.reads[split]
    if len(places) == 1:
        asked = x[str(places[0])]
    else:
        begin = sum(len(r) for r in layer.reads[:split] if len(r) > 1)
        asked = _sum(places, layer.weight[begin : begin + len(places)], x)
    body.add(f"if ({asked} <= {literal(layer.threshold[split])}) {{")
    for side, child in enumerate(layer.children[split]):
        body.depth += 1
        if child >= 0:
            _ask(layer, child, x, body)
        else:
            body.add(f"leaf = {int(layer.leaves[~child, 0]) if layer.labelled else ~child};")
        body.depth -= 1
        body.add("}" if side else "} else {")


def _walk(name: str, layer: Tree, x: Row, body: Body) -> None:
    """The same from tables: what split s reads begins at `begins[s]`."""
    terms, sizes = layer.terms, [len(places) for places in layer.reads]
    places = body.constant(f"reads_{name}", np.concatenate([np.array(r) for r in layer.reads]), _whole(layer.width))
    thresholds = body.constant(f"threshold_{name}", layer.threshold)
    top = max(len(layer.children), len(layer.leaves))
    children = body.constant(f"children_{name}", np.array(layer.children), "int16_t" if top < 2**15 else "int32_t")
    body.add("int leaf, node = 0;", "while (node >= 0) {")
    if max(sizes) == 1:
        body.add(f"    const float sum = {x[f'{places}[node]']};")
    else:
        begins = body.constant(f"begins_{name}", np.cumsum([0, *sizes]), _whole(sum(sizes) + 1))
        stored = np.concatenate([terms.weight[:size, s] for s, size in enumerate(sizes)])
        weights = body.constant(f"weight_{name}", stored)
        body.add(
            f"    int term = {begins}[node];",
            f"    float sum = {weights}[term] * {x[f'{places}[term]']};",
            f"    while (++term < {begins}[node + 1])",
            f"        sum += {weights}[term] * {x[f'{places}[term]']};",
        )
    body.add(
        f"    node = {children}[2 * node + (sum <= {thresholds}[node] ? 0 : 1)];",
        "}",
        "leaf = -1 - node;",
    )
    if layer.labelled:
        labels = body.constant(f"label_{name}", layer.leaves[:, 0], _whole(layer.says))
        body.add(f"leaf = {labels}[leaf];")


def _say(name: str, layer: Tree, y: Row, body: Body) -> None:
    if layer.labelled:
        body.each(layer.says, f"{y['i']} = i == leaf ? 1.0f : 0.0f;")
        return
    rows = body.constant(f"leaves_{name}", layer.leaves)
    body.each(layer.says, f"{y['i']} = {rows}[leaf * {layer.says} + i];")


def _sum(places: tuple[int, ...], weights: np.ndarray, x: Row) -> str:
    """w0 x0 + w1 x1 + ..., from left to right; a weight of 1 or -1 is not written, which changes no bit."""
    text = ""
    for place, weight in zip(places, weights.tolist(), strict=True):
        value = x[str(place)]
        size = value if abs(weight) == 1 else f"{literal(abs(weight))} * {value}"
        text += f" {'-' if weight < 0 else '+'} {size}" if text else f"{'-' if weight < 0 else ''}{size}"
    return text


def _whole(values: int) -> str:
    """The C type of numbers below `values`."""
    return "uint8_t" if values <= 2**8 else "uint16_t" if values <= 2**16 else "uint32_t"
