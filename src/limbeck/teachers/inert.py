"""A pickle reader that runs nothing: it interprets the opcodes, never imports or calls what the file names.

Plain data, numpy arrays and torch tensors (as arrays) come out as themselves; everything else as inert records
(`Named`, `Opaque`) that can be walked. One reader serves policy.pth, vec_normalize.pkl and state dicts.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from limbeck.errors import InputError, UnsafeError, printable
from limbeck.teachers import plaindata
from limbeck.teachers.archive import Archive, listed
from limbeck.teachers.plaindata import Malformed, Named, Opaque, Pending, Storage

MAX_BYTES = 256 * 2**20
MAX_OPCODES = 1_000_000
MAX_NESTING = 500  # open marks
MAX_NAME, MAX_NAMES = 512, 10_000  # characters of a module or name; different names in one file
MAX_BITS = 512  # of an integer: the states of random generators have 128
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first value of torch files written before version 1.6
_DAMAGE = (ValueError, IndexError, KeyError, TypeError, OverflowError, struct.error, RecursionError, MemoryError)

Persistent = Callable[[Any], Any]


def read_pickle(content: bytes, name: str = "pickle", persistent: Persistent | None = None, outside: int = 0) -> Any:
    """The value that the pickle describes, as plain data and inert records. Raises InputError for damage and bombs.

    `persistent` gives what lies outside the pickle, `outside` its size in bytes.
    """
    try:
        return _Machine(content, persistent, plaindata.BUILDERS, outside).run()
    except _DAMAGE as error:
        why = printable(str(error)[:400]) or type(error).__name__  # cut first: it may quote a whole file
        raise InputError(f"{printable(name)} is not a readable pickle: {why}. Copy or save it again.") from error


def read_torch_zip(content: bytes, name: str = "torch file") -> Any:
    """What `torch.save` wrote, tensors as numpy arrays (bfloat16 widened to float32). Raises UnsafeError for programs."""
    archive = Archive(content, name)
    root = _torch_root(archive)
    order = archive.read(f"{root}byteorder").strip() if f"{root}byteorder" in archive.members else b"little"
    if order not in (b"little", b"big"):
        raise InputError(f"{archive.name}: unknown byte order {printable(order)}. Save the teacher again.")
    held: dict[str, Storage] = {}

    def persistent(reference: Any) -> Storage:
        if not isinstance(reference, tuple) or len(reference) != 5:
            raise Malformed("a reference to something else than a tensor's storage")
        kind, key = reference[0], reference[2]
        if not isinstance(kind, str) or kind != "storage" or not isinstance(key, str):
            raise Malformed("a reference to something else than a tensor's storage")
        if key not in held:
            data = archive.read(f"{root}data/{key}")
            held[key] = plaindata.storage(reference[1], reference[4], data, "<" if order == b"little" else ">")
        return held[key]

    size = sum(map(archive.size, archive.members))
    return read_pickle(archive.read(f"{root}data.pkl"), f"{archive.name}: data.pkl", persistent, size)


def _torch_root(archive: Archive) -> str:
    if any("/code/" in m or m.endswith(("constants.pkl", "model.json", "archive_format")) for m in archive.members):
        raise UnsafeError(
            f"{archive.name} is a TorchScript or torch.export program, which runs code when loaded. Refused. Allowed: weights alone; save module.state_dict() as safetensors, or pass the module in Python."
        )
    roots = [m[: -len("data.pkl")] for m in archive.members if m == "data.pkl" or m.endswith("/data.pkl")]
    if len(roots) != 1 or roots[0].count("/") > 1:
        raise InputError(
            f"{archive.name} is a zip of {listed(archive.members)}, no teacher. Allowed: a Stable-Baselines3 zip, or tensors saved by torch.save."
        )
    return roots[0]


def names_in(content: bytes) -> tuple[str, ...]:
    """Everything the pickle would import if it were unpickled, also when it is cut or damaged further on."""
    machine = _Machine(content, lambda reference: Opaque(None, (reference,)), builders={})
    try:
        machine.run()
    except _DAMAGE:
        machine.named["(damaged pickle)"] = None
    return tuple(machine.named)


def opaque_names(value: Any) -> tuple[str, ...]:
    """What a value read here holds beyond plain data: the names of classes and functions, in order of appearance."""
    names: dict[str, None] = {}
    for part in walk(value):
        if isinstance(part, Named):
            names[str(part)] = None
        elif isinstance(part, (Opaque, Pending, Storage)) and not isinstance(getattr(part, "target", None), Named):
            names[type(part).__name__.lower()] = None
    return tuple(names)


def walk(value: Any) -> Iterator[Any]:
    """Every part of a value once, without recursion."""
    seen: set[int] = set()
    todo = [value]
    while todo:
        part = todo.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        todo.extend(reversed(list(_children(part))))


def _children(part: Any) -> Iterator[Any]:
    if isinstance(part, dict):
        for key, value in part.items():
            yield from (key, value)
    elif isinstance(part, (list, tuple, set, frozenset)):
        yield from part
    elif isinstance(part, Opaque):
        yield from (part.target, part.args, part.state, part.items, part.entries)


# ---------------------------------------------------------------- the machine

_PUSH = frozenset((
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "FLOAT", "BINFLOAT", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
))  # fmt: skip
_CONSTANT: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_LIST": list,
    "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": set,
}  # fmt: skip
_NOTHING = frozenset(("PROTO", "FRAME", "READONLY_BUFFER"))


class _Machine:
    """Stack, marks and memo of one reading. One method per opcode, named as `pickletools` names it."""

    def __init__(
        self,
        content: bytes,
        persistent: Persistent | None,
        builders: Mapping[tuple[str, str], plaindata.Builder],
        outside: int = 0,
    ) -> None:
        if len(content) > MAX_BYTES:
            raise Malformed(f"{len(content):,} bytes, allowed {MAX_BYTES:,}")
        self._content, self._persistent, self._builders = content, persistent, builders
        self._budget = plaindata.Budget(len(content) + outside)
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self.named: dict[str, None] = {}

    def run(self) -> Any:
        for count, (opcode, argument, position) in enumerate(pickletools.genops(self._content)):
            if count >= MAX_OPCODES:
                raise Malformed(f"more than {MAX_OPCODES:,} operations")
            name = opcode.name
            if name in _PUSH:
                if isinstance(argument, int) and argument.bit_length() > MAX_BITS:
                    raise Malformed(f"a number of {argument.bit_length():,} bits, allowed {MAX_BITS}")
                self._stack.append(argument)
            elif name in _CONSTANT:
                self._stack.append(_CONSTANT[name]())
            elif name == "STOP":
                return self._stopped((position or 0) + 1)
            elif name not in _NOTHING:
                self._step(name, argument)
        raise Malformed("it ends without STOP")

    def _step(self, name: str, argument: Any) -> None:
        method = getattr(self, f"_op_{name.lower()}", None)
        if method is None:
            raise Malformed(f"operation {name} is not read here")
        method(argument)

    def _stopped(self, end: int) -> Any:
        value = self._stack.pop()
        if type(value) is int and value == LEGACY_MAGIC:
            raise Malformed("torch's format from before version 1.6; save it again with a newer torch")
        if end != len(self._content):
            raise Malformed(f"{len(self._content) - end} bytes follow its end")
        if self._stack or self._marks:
            raise Malformed("values are left over at its end")
        return value

    # marks and memo

    def _op_mark(self, _: Any) -> None:
        if len(self._marks) >= MAX_NESTING:
            raise Malformed(f"nested deeper than {MAX_NESTING}")
        self._marks.append(self._stack)
        self._stack = []

    def _to_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _op_pop(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._to_mark()

    def _op_pop_mark(self, _: Any) -> None:
        self._to_mark()

    def _op_dup(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def _op_put(self, key: int) -> None:
        value = self._stack[-1]
        self._memo[key] = value
        if isinstance(value, Pending):
            value.keys.append(key)

    _op_binput = _op_long_binput = _op_put

    def _op_memoize(self, _: Any) -> None:
        self._op_put(len(self._memo))

    def _op_get(self, key: int) -> None:
        self._stack.append(self._memo[key])

    _op_binget = _op_long_binget = _op_get

    # containers

    def _op_tuple(self, _: Any) -> None:
        items = self._to_mark()
        self._stack.append(tuple(items))

    def _op_tuple1(self, _: Any) -> None:
        self._pack(1)

    def _op_tuple2(self, _: Any) -> None:
        self._pack(2)

    def _op_tuple3(self, _: Any) -> None:
        self._pack(3)

    def _pack(self, count: int) -> None:
        if len(self._stack) < count:
            raise Malformed("a tuple of missing parts")
        items = tuple(self._stack[-count:])
        self._stack[-count:] = [items]

    def _op_list(self, _: Any) -> None:
        items = self._to_mark()
        self._stack.append(items)

    def _op_dict(self, _: Any) -> None:
        items = self._to_mark()
        self._stack.append({})
        self._set(items)

    def _op_frozenset(self, _: Any) -> None:
        items = self._to_mark()
        self._stack.append(frozenset(self._budget.key(v) for v in items))

    def _op_append(self, _: Any) -> None:
        item = self._stack.pop()
        self._extend([item])

    def _op_appends(self, _: Any) -> None:
        items = self._to_mark()
        self._extend(items)

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, (list, Opaque)):
            raise Malformed(f"items appended to a {type(target).__name__}")
        (target if isinstance(target, list) else target.items).extend(items)

    def _op_additems(self, _: Any) -> None:
        items = self._to_mark()
        target = self._stack[-1]
        if isinstance(target, set):
            target.update(self._budget.key(v) for v in items)
        else:
            self._extend(items)

    def _op_setitem(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def _op_setitems(self, _: Any) -> None:
        items = self._to_mark()
        self._set(items)

    def _set(self, items: list[Any]) -> None:
        target, pairs = self._stack[-1], list(zip(items[::2], items[1::2], strict=True))
        if isinstance(target, dict):
            target.update((self._budget.key(k), v) for k, v in pairs)
        elif isinstance(target, Opaque):
            target.entries.extend(pairs)
        else:
            raise Malformed(f"entries set on a {type(target).__name__}")

    # names and what would be calls

    def _name(self, module: Any, name: Any) -> Named:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Malformed("a name that is no text")
        if max(len(module), len(name)) > MAX_NAME:
            raise Malformed(f"a name of {max(len(module), len(name)):,} characters, allowed {MAX_NAME}")
        named = Named(module, name)
        self.named[str(named)] = None
        if len(self.named) > MAX_NAMES:
            raise Malformed(f"more than {MAX_NAMES:,} different names")
        return named

    def _op_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(self._name(module, name))

    def _op_stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(self._name(module, name))

    def _op_inst(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        args = tuple(self._to_mark())
        self._stack.append(Opaque(self._name(module, name), args))

    def _op_obj(self, _: Any) -> None:
        target, *args = self._to_mark()
        self._stack.append(Opaque(target, tuple(args)))

    def _op_reduce(self, _: Any) -> None:
        args, target = self._stack.pop(), self._stack.pop()
        self._stack.append(self._called(target, args))

    _op_newobj = _op_reduce

    def _called(self, target: Any, args: Any) -> Any:
        """What calling `target` would have given: by our own builder for plain data, else a record."""
        if not isinstance(args, tuple):
            raise Malformed("a call without arguments")
        if not isinstance(target, (Named, Opaque)):
            raise Malformed(f"a call of a {type(target).__name__}")
        build = self._builders.get((target.module, target.name)) if isinstance(target, Named) else None
        return build(args, self._budget) if build is not None else Opaque(target, args)

    def _op_newobj_ex(self, _: Any) -> None:
        kwargs, args, target = self._stack.pop(), self._stack.pop(), self._stack.pop()
        self._stack.append(Opaque(target, (args, kwargs)))

    def _op_build(self, _: Any) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Pending):
            is_array = target.kind == "array"
            value = plaindata.finish_array(state, self._budget) if is_array else plaindata.finish_dtype(target, state)
            self._stack[-1] = value
            self._memo.update(dict.fromkeys(target.keys, value))
            target.keys.clear()  # or every further BUILD of a copy would patch them again
        elif isinstance(target, Opaque):
            target.state = state
        elif not isinstance(
            target, dict
        ):  # an ordered dict's attributes, such as a state dict's _metadata, are dropped
            raise Malformed(f"a state set on a {type(target).__name__}")

    def _op_binpersid(self, _: Any) -> None:
        self._op_persid(self._stack.pop())

    def _op_persid(self, reference: Any) -> None:
        if self._persistent is None:
            raise Malformed("a reference to data outside the pickle")
        self._stack.append(self._persistent(reference))


def tensors(value: Any, name: str) -> dict[str, Any]:
    """A state dict's arrays by name. Raises UnsafeError where it holds more than plain data."""
    opaque = opaque_names(value)
    if opaque:
        raise UnsafeError(
            f"{printable(name)} holds more than tensors: unpickling it would use {listed(opaque)}. Nothing was run. Allowed: a plain state dict; save module.state_dict() or safetensors."
        )
    if isinstance(value, dict) and set(value) == {"state_dict"}:
        value = value["state_dict"]
    if not isinstance(value, dict) or not all(
        isinstance(k, str) and isinstance(v, np.ndarray) for k, v in value.items()
    ):
        raise InputError(f"{printable(name)} is no state dict. Allowed: names with their tensors.")
    return value
