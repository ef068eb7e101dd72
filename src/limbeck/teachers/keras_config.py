"""The configuration of a saved Keras model as chains of layers: plain JSON, checked by names, nothing imported.

Sequential models and Functional ones are read; where branches meet (Add, Concatenate), the graph is written as a chain
in which one link holds the branches since they parted. Two outputs are a policy and its value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from limbeck.errors import InputError, UnsafeError, printable

MAX_LAYERS = 500
MAX_LINKS = 2000  # of a chain, those inside its branches included
MAX_DEPTH = 16  # of branches inside branches
MERGES = ("Add", "Concatenate")
PROGRAMS = ("Lambda", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer")
_MODELS = ("Sequential", "Functional", "Model")


@dataclass(frozen=True)
class Entry:
    """One layer as the configuration states it."""

    kind: str  # class name
    name: str
    config: Mapping[str, Any]
    folder: str  # of its variables in model.weights.h5
    sources: tuple[str, ...]  # the layers whose outputs it takes


@dataclass(frozen=True)
class Merge:
    """Where branches meet: the layer that joins them, and each branch since they parted."""

    entry: Entry
    branches: tuple[Chain, ...]
    links: int  # all that are inside
    depth: int  # of merges inside merges


Chain = tuple["Entry | Merge", ...]


@dataclass(frozen=True)
class Model:
    """A model's inputs and, for each output, the chain of layers from there to it."""

    kind: str
    name: str
    inputs: Mapping[str, tuple[int | None, ...]]  # name -> shape without the batch axis
    chains: tuple[Chain, ...]

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """Of the only input, or of all of them side by side."""
        shapes = list(self.inputs.values())
        return shapes[0] if len(shapes) == 1 else (sum(shape[0] or 0 for shape in shapes),)


def parse(text: str | bytes, file: str) -> Model:
    """The model that a configuration states. Raises UnsafeError for layers that are code, InputError for all others unread."""
    try:
        stated = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _wrong(file, f"its configuration is no JSON ({printable(error, 80)})") from error
    if not isinstance(stated, dict) or not isinstance(stated.get("config"), (dict, list)):
        raise _wrong(file, "its configuration states no model")
    kind, config = str(stated.get("class_name")), stated["config"]
    _check_origin(stated, kind, file)
    if kind not in _MODELS or not isinstance(config, dict):
        raise _wrong(file, f"it is a {printable(kind, 60)}. Allowed: Sequential, Functional")
    raw = config.get("layers")
    if not isinstance(raw, list) or not 0 < len(raw) <= MAX_LAYERS:
        raise _wrong(file, f"it states no list of 1 to {MAX_LAYERS} layers")
    entries = _entries(raw, kind == "Sequential", file)
    name = printable(config.get("name", kind), 60)
    if kind == "Sequential":
        return _sequential(config, entries, name, file)
    return _functional(config, entries, name, file)


def _wrong(file: str, why: str) -> InputError:
    return InputError(
        f"{printable(file)}: {why}. Save a Sequential or Functional model of plain layers with model.save('x.keras')."
    )


def _check_origin(stated: Mapping[str, Any], kind: str, file: str) -> None:
    """A layer must be one of Keras' own: its module is a word to compare, never imported."""
    module, registered = stated.get("module"), stated.get("registered_name")
    foreign = module is not None and (
        not isinstance(module, str) or not re.fullmatch(r"(tf_)?keras(\.[a-z_0-9.]+)?", module)
    )
    custom = registered is not None and (
        not isinstance(registered, str) or registered not in (kind, "Functional", "Sequential")
    )
    if kind in PROGRAMS or foreign or custom:
        origin = f" of {printable(module if foreign else registered, 60)}" if foreign or custom else ""
        raise UnsafeError(
            f"{printable(file)} has a layer {printable(kind, 60)}{origin}, which is code of its own. Refused, nothing was imported or run. Allowed: Keras' own layers; save the model without it."
        )


def _entries(raw: list[Any], sequential: bool, file: str) -> list[Entry]:
    entries: list[Entry] = []
    seen: dict[str, int] = {}
    for layer in raw:
        if not isinstance(layer, dict) or not isinstance(layer.get("config"), dict):
            raise _wrong(file, "a layer without a configuration")
        kind, config = str(layer.get("class_name")), layer["config"]
        _check_origin(layer, kind, file)
        name = config.get("name", layer.get("name"))
        if not isinstance(name, str) or not 0 < len(name) <= 200 or "/" in name:
            raise _wrong(file, f"a layer named {printable(name, 60)!r}")
        folder = _snake(kind)
        count = seen.get(folder, 0)
        seen[folder] = count + 1
        sources = () if sequential or kind == "InputLayer" else _sources(layer, name, kind, file)
        entries.append(Entry(kind, name, config, f"{folder}_{count}" if count else folder, sources))
    if len({entry.name for entry in entries}) != len(entries):
        raise _wrong(file, "two layers of one name")
    return entries


def _snake(kind: str) -> str:
    """How Keras turns a class name into the name of a folder of weights.

    >>> _snake("BatchNormalization"), _snake("Conv2D"), _snake("LSTM")
    ('batch_normalization', 'conv2d', 'lstm')
    """
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", kind))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _sources(layer: Mapping[str, Any], name: str, kind: str, file: str) -> tuple[str, ...]:
    """The layers whose outputs this one takes: one, or several where branches meet."""
    nodes = layer.get("inbound_nodes")
    if not isinstance(nodes, list) or len(nodes) != 1:
        count = len(nodes) if isinstance(nodes, list) else 0
        raise _wrong(file, f"layer {printable(name, 60)!r} is used {count} times; only layers used once are read")
    node = nodes[0]
    if isinstance(node, dict):  # Keras 3: {"args": [tensor or tensors], "kwargs": {}}
        args, options = node.get("args"), node.get("kwargs") or {}
        plain = isinstance(options, dict) and all(v in (None, False) for v in options.values())
        found = args[0] if plain and isinstance(args, list) and len(args) == 1 else None
        tensors = found if isinstance(found, list) else [found]
        histories = [_history(tensor) for tensor in tensors]
    else:  # Keras 2: [[name, node, tensor, options], ...]
        tensors = node if isinstance(node, list) else [None]
        histories = [t[:3] if isinstance(t, list) and len(t) in (3, 4) and not any(t[3:]) else None for t in tensors]
    names = [
        h[0] for h in histories if isinstance(h, list) and len(h) == 3 and isinstance(h[0], str) and h[1:] == [0, 0]
    ]
    allowed = range(2, 17) if kind in MERGES else (1,)
    if len(names) != len(histories) or len(names) not in allowed:
        raise _wrong(
            file, f"layer {printable(name, 60)!r} ({printable(kind, 40)}) takes inputs or options that are not read"
        )
    return tuple(names)


def _history(tensor: Any) -> Any:
    config = tensor.get("config") if isinstance(tensor, dict) else None
    return config.get("keras_history") if isinstance(config, dict) else None


def _sequential(config: Mapping[str, Any], entries: list[Entry], name: str, file: str) -> Model:
    first, chain = entries[0], entries
    shapes = [first.config.get(k) for k in ("batch_shape", "batch_input_shape")] + [config.get("build_input_shape")]
    if first.kind == "InputLayer":
        chain = entries[1:]
    shape = _input_shape(next((s for s in shapes if s is not None), None), file)
    if not chain or any(entry.kind in (*MERGES, "InputLayer") for entry in chain):
        raise _wrong(file, "its layers are no chain")
    return Model("Sequential", name, {first.name: shape}, (tuple(chain),))


def _functional(config: Mapping[str, Any], entries: list[Entry], name: str, file: str) -> Model:
    begins, outputs = (_references(config.get(f"{k}_layers"), file) for k in ("input", "output"))
    by_name = {entry.name: entry for entry in entries}
    if not 1 <= len(begins) <= 16 or not 1 <= len(outputs) <= 2:
        raise _wrong(
            file, f"it has {len(begins)} inputs and {len(outputs)} outputs; one output is read, or two (policy, value)"
        )
    inputs = {}
    for begin in begins:
        entry = by_name.get(begin)
        if entry is None or entry.kind != "InputLayer":
            raise _wrong(file, f"its input {printable(begin, 60)!r} is no InputLayer")
        inputs[begin] = _input_shape(entry.config.get("batch_shape", entry.config.get("batch_input_shape")), file)
    if len(inputs) > 1 and any(len(shape) != 1 for shape in inputs.values()):
        raise _wrong(
            file, f"its inputs have the shapes {printable(list(inputs.values()), 100)}; several inputs must be vectors"
        )
    chains = tuple(_chain(by_name, output, file) for output in outputs)
    if len(inputs) == 1:
        chains = tuple(chain[1:] for chain in chains)  # the input itself
    if not all(chains):
        raise _wrong(file, "its output is its input")
    return Model("Functional", name, inputs, chains)


def _chain(by_name: Mapping[str, Entry], output: str, file: str) -> Chain:
    """The links from the input, which is the first of them, to an output."""
    known: dict[str, Chain] = {}
    todo: list[str] = [output]
    for _ in range(4 * MAX_LAYERS):
        if not todo:
            break
        entry = by_name.get(todo[-1])
        if entry is None:
            raise _wrong(file, f"no way leads from the input to {printable(output, 60)!r}")
        waiting = [name for name in entry.sources if name not in known]
        if waiting:
            todo += waiting
            continue
        known[todo.pop()] = chain = _joined(entry, [known[name] for name in entry.sources])
        if _links(chain) > MAX_LINKS or any(isinstance(link, Merge) and link.depth > MAX_DEPTH for link in chain):
            raise _wrong(file, "its branches part and meet too often")
    if output not in known:
        raise _wrong(file, f"no way leads from the input to {printable(output, 60)!r}")
    return known[output]


def _joined(entry: Entry, before: list[Chain]) -> Chain:
    if len(before) <= 1:
        return (*(before[0] if before else ()), entry)
    shared = 0
    while all(len(chain) > shared and chain[shared] is before[0][shared] for chain in before):
        shared += 1
    branches = tuple(chain[shared:] for chain in before)
    inside = [link for branch in branches for link in branch if isinstance(link, Merge)]
    return (
        *before[0][:shared],
        Merge(entry, branches, _links(*branches), 1 + max((m.depth for m in inside), default=0)),
    )


def _links(*chains: Chain) -> int:
    return sum(1 + (link.links if isinstance(link, Merge) else 0) for chain in chains for link in chain)


def _references(stated: Any, file: str) -> list[str]:
    """The names in input_layers or output_layers: one reference, or a list of them."""
    if isinstance(stated, list) and len(stated) == 3 and isinstance(stated[0], str):
        stated = [stated]
    if isinstance(stated, list) and all(isinstance(r, list) and len(r) == 3 and isinstance(r[0], str) for r in stated):
        return [reference[0] for reference in stated]
    raise _wrong(file, "its inputs and outputs are no plain lists")


def _input_shape(stated: Any, file: str) -> tuple[int | None, ...]:
    if (
        not isinstance(stated, list)
        or not 2 <= len(stated) <= 4
        or stated[0] not in (None, 1)
        or any(n is not None and (type(n) is not int or not 0 < n < 2**20) for n in stated[1:])
        or stated[-1] is None
    ):
        raise _wrong(file, f"its input has the shape {printable(stated, 60)}; vectors, sequences and pictures are read")
    return tuple(stated[1:])
