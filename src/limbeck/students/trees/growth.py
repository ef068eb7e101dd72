"""From weighted rows to a `Tree` of the wanted size: grown too large, pruned at its weakest links.

Pruning is CART's cost complexity pruning (Breiman et al. 1984): the split whose removal costs least per leaf goes
first, until few enough leaves are left. Costs are weighted disagreements for actions from a list, squared errors else.
Oblique splits are chosen at each node among single numbers, sums and differences of two standardised numbers
(INTERPRETER, arXiv:2405.14956) and least-squares directions that separate one target from the others, whole and cut
to three numbers; a split of several numbers must gain a twentieth more than the best of one.
"""

from __future__ import annotations

import heapq
import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.contracts import Floats, Head, Tree
from limbeck.students.trees import cart
from limbeck.students.trees.cart import Bounds, Nodes
from limbeck.students.trees.targets import Examples, row_of

OVERGROWN = 3  # times the wanted leaves
EDGE = 1.05  # gain of a split of several numbers over one of a single number
MOST_PAIRS = 24  # numbers whose pairs are tried: the ones that vary together with the targets most
FAINT = 0.05  # of the largest weight of a direction: smaller ones are left out
TERMS = 3  # numbers of the directions that are cut


def tree(examples: Examples, leaves: int, depth: int, oblique: bool, seed: int) -> Tree:
    """At most `leaves` leaves (0: any) and `depth` questions on a path (0: any)."""
    bounds = Bounds(OVERGROWN * leaves if leaves else None, depth or None)
    if oblique:
        nodes = _grow_oblique(examples, bounds, seed)
    else:
        nodes = cart.grow(examples.x, examples.y, examples.weight, bounds, seed)
    _weigh(nodes, examples.head)
    prune(nodes, leaves)
    return layer_of(nodes, examples)


def prune(nodes: Nodes, leaves: int) -> None:
    """Collapse weakest links until at most `leaves` are left (0: any), and all that cost nothing."""
    while nodes.children[0] != (-1, -1):
        counts, costs = _below(nodes)
        links = [
            ((nodes.cost[n] - costs[n]) / (counts[n] - 1), n)
            for n in range(len(nodes.cost))
            if counts[n] > 1 and nodes.children[n] != (-1, -1)
        ]
        weakest, node = min(links)
        if weakest > 1e-9 * abs(nodes.cost[0]) and (not leaves or counts[0] <= leaves):
            return
        nodes.children[node] = (-1, -1)


def _below(nodes: Nodes) -> tuple[list[int], list[float]]:
    """Leaves under each node and their summed cost; 0 leaves for nodes that were cut off."""
    counts, costs, order = [0] * len(nodes.cost), [0.0] * len(nodes.cost), _reached(nodes)
    for node in reversed(order):
        left, right = nodes.children[node]
        counts[node] = 1 if left < 0 else counts[left] + counts[right]
        costs[node] = nodes.cost[node] if left < 0 else costs[left] + costs[right]
    return counts, costs


def _reached(nodes: Nodes) -> list[int]:
    """Nodes from the root down, parents before children."""
    order = [0]
    for node in order:
        order += [child for child in nodes.children[node] if child >= 0]
    return order


def _weigh(nodes: Nodes, head: Head) -> None:
    """Costs of leaves that answer with one action: the weight of the rows that want another."""
    if not head.discrete or head.kind == "bernoulli":
        return
    groups = np.split(np.arange(sum(head.sizes)), np.cumsum(head.sizes)[:-1])
    for node, value in enumerate(nodes.value):
        gini = sum(float((value[g] * (1 - value[g])).sum()) for g in groups)
        missed = sum(1 - float(value[g].max()) for g in groups)
        nodes.cost[node] *= missed / gini if gini > 1e-12 else 0.0


def layer_of(nodes: Nodes, examples: Examples) -> Tree:
    """The nodes as a layer; leaves stay rows, what they say is settled when the student is frozen."""
    order = _reached(nodes)
    splits = [n for n in order if nodes.children[n] != (-1, -1)]
    ends = [n for n in order if nodes.children[n] == (-1, -1)]
    number = {n: s for s, n in enumerate(splits)} | {n: ~leaf for leaf, n in enumerate(ends)}
    rows = np.stack([row_of(examples, nodes.value[n]) for n in ends]).astype(np.float32)
    width, says = examples.x.shape[1], rows.shape[1]
    if not splits:
        return Tree(np.zeros(0, np.float32), np.zeros(1, np.float32), rows, ((0,),), ((-1, -1),), width, says)
    weight = [w for n in splits if len(nodes.reads[n]) > 1 for w in nodes.weights[n]]
    children = tuple((number[nodes.children[n][0]], number[nodes.children[n][1]]) for n in splits)
    thresholds = np.array([nodes.threshold[n] for n in splits])
    return Tree(
        np.array(weight, np.float32),
        below(thresholds),
        rows,
        tuple(nodes.reads[n] for n in splits),
        children,
        width,
        says,
    )


def below(values: NDArray[np.float64]) -> Floats:
    """The largest float32 not above each number: x <= t stays what it was for every float32 x."""
    single = values.astype(np.float32)
    return np.where(single > values, np.nextafter(single, np.float32(-np.inf)), single)


# ---------------------------------------------------------------- oblique splits


def _grow_oblique(examples: Examples, bounds: Bounds, seed: int) -> Nodes:
    """Best first: the leaf whose split gains most is split next."""
    nodes, ticket = Nodes(), itertools.count()
    waiting: list[tuple[Any, ...]] = []  # a heap of (-gain, ticket, node, rows, depth, split)

    def offer(rows: NDArray[np.int64], depth: int) -> None:
        y, weight = examples.y[rows], examples.weight[rows]
        mean = np.average(y, axis=0, weights=weight)
        cost = float((weight[:, None] * (y - mean) ** 2).sum())
        node = nodes.add(mean.astype(np.float32), cost)
        if cost > 1e-9 and (bounds.depth is None or depth < bounds.depth) and len(rows) >= 2 * bounds.fewest_rows:
            found = _best_split(examples, rows, bounds.fewest_rows, seed)
            if found is not None:
                heapq.heappush(waiting, (-found[0], next(ticket), node, rows, depth, found[1:]))

    offer(np.arange(len(examples.x)), 0)
    leaves = 1
    while waiting and (bounds.leaves is None or leaves < bounds.leaves):
        _, _, node, rows, depth, (reads, weights, threshold) = heapq.heappop(waiting)
        nodes.split(node, reads, weights, threshold)
        total = sum(np.float32(w) * examples.x[rows, r] for r, w in zip(reads, weights, strict=True))
        left = np.asarray(total) <= threshold
        if left.all() or not left.any():  # rounding moved every row to one side: the leaf stays whole
            nodes.children[node] = (-1, -1)
            continue
        offer(rows[left], depth + 1)
        offer(rows[~left], depth + 1)
        leaves += 1
    return nodes


Split = tuple[float, tuple[int, ...], tuple[float, ...], float]  # gain, reads, weights, threshold


def _best_split(examples: Examples, rows: NDArray[np.int64], fewest: int, seed: int) -> Split | None:
    x, y, weight = examples.x[rows], examples.y[rows], examples.weight[rows]
    single = cart.stump(x, y, weight, fewest, seed)
    directions = _directions(examples, rows)
    several = None
    if len(directions):
        sums = (x - examples.mean) @ directions.T.astype(np.float32)
        several = cart.stump(sums, y, weight, fewest, seed)
    if several is not None and (single is None or several[2] > EDGE * single[2]):
        direction = directions[several[0]]
        places = np.flatnonzero(direction)
        scale = np.abs(direction).max()
        kept = (direction[places] / scale).astype(np.float32)
        threshold = several[1] / scale + float(kept.astype(np.float64) @ examples.mean[places])
        return several[2], tuple(places.tolist()), tuple(kept.tolist()), float(np.float32(threshold))
    return None if single is None else (single[2], (single[0],), (1.0,), single[1])


def _directions(examples: Examples, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """[D, I] directions over raw numbers, each reading two or more."""
    scale, width = examples.scale.astype(np.float64), examples.x.shape[1]
    z = (examples.x[rows] - examples.mean) / scale
    y, weight = examples.y[rows].astype(np.float64), examples.weight[rows].astype(np.float64)
    y = y - np.average(y, axis=0, weights=weight)
    wz = z * weight[:, None]
    gram = wz.T @ z + 1e-3 * weight.sum() * np.eye(width)
    moments = wz.T @ y  # [I, W]
    found = []
    telling = np.argsort(-np.abs(moments).max(axis=1), kind="stable")[:MOST_PAIRS]
    for i, j in itertools.combinations(sorted(telling.tolist()), 2):
        for sign in (1.0, -1.0):
            pair = np.zeros(width)
            pair[i], pair[j] = 1.0, sign
            found.append(pair)
    for moment in moments.T:
        if np.abs(moment).max() < 1e-9:
            continue
        full = np.linalg.solve(gram, moment)
        found.append(np.where(np.abs(full) < FAINT * np.abs(full).max(), 0.0, full))
        top = np.argsort(-np.abs(full), kind="stable")[:TERMS]
        cut = np.zeros(width)
        cut[top] = np.linalg.solve(gram[np.ix_(top, top)], moment[top])
        found.append(cut)
    kept = [d / scale for d in found if np.count_nonzero(d) > 1]
    return np.array(kept) if kept else np.zeros((0, width))
