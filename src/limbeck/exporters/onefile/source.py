"""Excerpts of Limbeck's own source: the functions that one policy needs, word for word, dependencies first.

So the one-file target has no arithmetic of its own: what it says is what the reference runtime runs and tests hold.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

ROOT = "limbeck."
GIVEN = ("Any", "SimpleNamespace", "base64", "math", "np")  # what every file imports


@dataclass
class _Module:
    """The top level of a source file: where its names are defined, and where from it imports others."""

    text: list[str]
    defined: dict[str, ast.stmt] = field(default_factory=dict)
    imported: dict[str, tuple[str, str]] = field(default_factory=dict)  # name here -> module, name there


@dataclass
class Excerpt:
    """Definitions in the order in which a file can hold them."""

    replaced: Mapping[str, str]  # name -> what stands in its place, at the end
    parts: list[str] = field(default_factory=list)
    words: set[str] = field(default_factory=set)  # names that only annotations use
    _modules: dict[str, _Module] = field(default_factory=dict)
    _seen: dict[str, str] = field(default_factory=dict)  # name -> the module it came from

    def add(self, module: str, name: str) -> None:
        """A definition and everything it needs. Raises ValueError for two different things of one name."""
        here = self._module(module)
        if name in self.replaced:
            return
        if name not in here.defined:
            if name in here.imported and here.imported[name][0].startswith(ROOT):
                self.add(*here.imported[name])
            return  # a builtin, numpy, math
        if self._seen.setdefault(name, module) != module:
            raise ValueError(f"{name} of {module} and of {self._seen[name]} cannot lie in one file")
        node = here.defined[name]
        if f"{module}.{name}" in self._seen:
            return
        self._seen[f"{module}.{name}"] = module
        for needed in _used(node):
            self.add(module, needed)
        self.words |= set(_annotated(node))
        begin = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        self.parts.append("\n".join(here.text[begin - 1 : node.end_lineno]))

    @property
    def undefined_words(self) -> list[str]:
        """Names in annotations that the excerpt does not define."""
        known = {*self._seen, *dir(builtins), *GIVEN}
        return sorted(self.words - known)

    def _module(self, name: str) -> _Module:
        if name not in self._modules:
            text = inspect.getsource(importlib.import_module(name))
            module = self._modules[name] = _Module(text.splitlines())
            for node in ast.parse(text).body:
                for defined in _names(node):
                    module.defined[defined] = node
                if isinstance(node, ast.ImportFrom) and node.module:
                    module.imported |= {a.asname or a.name: (node.module, a.name) for a in node.names}
        return self._modules[name]


def _names(node: ast.stmt) -> list[str]:
    match node:
        case ast.FunctionDef() | ast.ClassDef():
            return [node.name]
        case ast.Assign():
            return [target.id for target in node.targets if isinstance(target, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
    return []


def _annotations(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.FunctionDef():
            yield from (node.returns,) if node.returns else ()
        case ast.arg() | ast.AnnAssign():
            yield from (node.annotation,) if node.annotation else ()


def _used(node: ast.AST) -> Iterator[str]:
    """Names that running the definition needs; annotations are never evaluated."""
    hints = {id(hint) for hint in _annotations(node)}
    for child in ast.iter_child_nodes(node):
        if id(child) not in hints:
            if isinstance(child, ast.Name):
                yield child.id
            yield from _used(child)


def _annotated(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        for hint in _annotations(inner):
            yield from (n.id for n in ast.walk(hint) if isinstance(n, ast.Name))
