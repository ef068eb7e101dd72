"""Builds the wheel: the modules of Limbeck that playing needs are copied from ../src into limbeck_runtime/_limbeck.

They are the same files, word for word but for their imports, so there is one implementation. Which ones is read from
their import lines, beginning with ROOTS. A source distribution holds them as they are, in a src of its own, from which
the same wheel is built without a checkout.
"""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = Path(__file__).resolve().parent
ROOT = HERE if (HERE / "src" / "limbeck").is_dir() else HERE.parent  # of a source distribution, or of the checkout
SOURCE = ROOT / "src"
ROOTS = (
    "limbeck.blueprints",
    "limbeck.exporters.contract",
    "limbeck.exporters.replaying",
    "limbeck.runtimes.numpy",
    "limbeck.runtimes.compiled_c",
    "limbeck.runtimes.onnx_session",
    "limbeck.runtimes.python_file",
    "limbeck.runtimes.wasm",
)
OURS = ("limbeck.contracts",)  # packages whose __init__ is copied; those of the others stay empty
HOME = "limbeck_runtime._limbeck"
SPELLED = (
    (re.compile(r"^(\s*(?:from|import)) limbeck\b", re.MULTILINE), rf"\1 {HOME}"),
    (re.compile(r"^import gymnasium as gym$", re.MULTILINE), "from limbeck_runtime import words as gym"),
    (re.compile(r"^(\s*)import gymnasium as gym$", re.MULTILINE), r"\1from limbeck_runtime import words as gym"),
    (re.compile(r"^from gymnasium import spaces$", re.MULTILINE), "from limbeck_runtime.words import spaces"),
    (re.compile(r'pip install "limbeck\['), 'pip install "limbeck-runtime['),
)


def modules() -> dict[str, Path]:
    """Every module that the roots import, by its name."""
    found: dict[str, Path] = {}
    waiting = list(ROOTS)
    while waiting:
        name = waiting.pop()
        path = SOURCE.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in found or not path.is_file() or (path.name == "__init__.py" and name not in OURS):
            continue
        found[name] = path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "limbeck":
                waiting += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def copy(target: Path) -> None:
    """Write the modules, with their imports pointing at each other, as the package `target`."""
    for path in modules().values():
        text = path.read_text()
        for pattern, spelling in SPELLED:
            text = pattern.sub(spelling, text)
        place = target.joinpath(*path.relative_to(SOURCE / "limbeck").parts)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    for folder in {target, *(path.parent for path in target.rglob("*.py"))}:
        (folder / "__init__.py").touch()


class Build(build_py):
    """Python files, then the copies."""

    def run(self) -> None:
        super().run()
        require_source()
        package = Path(self.build_lib) / "limbeck_runtime"
        copy(package / "_limbeck")
        shutil.copy(ROOT / "LICENSE", package)


class Pack(sdist):
    """What is here, the modules as they are in Limbeck, and the licence."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        require_source()
        super().make_release_tree(base_dir, files)
        for path in modules().values():
            place = Path(base_dir) / path.relative_to(ROOT)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
        shutil.copy(ROOT / "LICENSE", base_dir)


def require_source() -> None:
    """Stop where neither a checkout nor a source distribution is around this file."""
    if not (SOURCE / "limbeck").is_dir():
        raise SystemExit(
            "limbeck-runtime is built from a checkout of Limbeck or from its own source distribution: there is no src/limbeck."
        )


if __name__ == "__main__":
    setup(cmdclass={"build_py": Build, "sdist": Pack})
