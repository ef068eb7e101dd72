"""The page in which a student plays: one self-contained HTML, with the module inside and no request but to its server.

The scripts are modules of their own (page/*.mjs), tested in node; here they become one, because a file that was opened
from a disk may load no other. What may run is stated by hash, so that nothing that a name smuggles in can.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck import exporters, storage
from limbeck.contracts import Head
from limbeck.errors import printable
from limbeck.exporters import wasm
from limbeck.reporting import naming, svg

PAGE = Path(__file__).with_name("page")
SCRIPTS = (wasm.FREESTANDING / wasm.LOADER, *(PAGE / f"{name}.mjs" for name in ("cartpole", "streamed", "play")))
MOST_BARS = 16  # numbers of an observation that are shown
CARTPOLE = "CartPole-v1"


@dataclass(frozen=True)
class World:
    """What the page plays in: CartPole's own dynamics, or whatever is streamed to it."""

    fps: float = 30.0
    aspect: float = 1.5  # width of the picture to its height
    physics: dict[str, float] = field(default_factory=dict)  # empty: the environment is streamed
    starts: dict[int, list[float]] = field(default_factory=dict)  # seed -> first state, of CartPole
    notice: str = ""  # why there is no picture


def write(artefact: Path, world: World, seed: int, served: bool) -> str:
    """The page as text; `served`: it tells the server that gave it what was reached."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    contract, module = exporters.contract.read(artefact), (artefact / "wasm" / wasm.WASM).read_bytes()
    name, task = str(storage.read_json(artefact / exporters.contract.CONTRACT)["name"]), contract.spec.name
    environment = Environment(
        loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["ours"] = Markup  # script, style, and facts that cannot end their element; never a name
    return environment.get_template("play.html").render(
        name=printable(name, 80), task=printable(task, 80), lead=_lead(len(module), world), notice=world.notice,
        policy=security(served), seeds=(seed, max(world.starts, default=None)),
        more=_more(contract), style=_style(), script=bundle(),
        facts=_facts(module, contract, world, seed, served),
    )  # fmt: skip


def security(served: bool) -> str:
    """The page's Content-Security-Policy: its own script and style by hash, its own server or nobody at all."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (bundle(), _style())]
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src 'sha256-{hashes[0]}' 'wasm-unsafe-eval'",  # only with it may WebAssembly be compiled
            f"style-src 'sha256-{hashes[1]}'",
            "img-src data:",
            "connect-src 'self'" if served else "connect-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def bundle() -> str:
    """The scripts as one module: their imports of one another and their exports go, their names are told apart."""
    texts = [re.sub(r"^(import|export) \{[^}]*\}.*;\n", "", path.read_text(), flags=re.MULTILINE) for path in SCRIPTS]
    return "\n".join(texts)


def _style() -> str:
    light, dark = svg.variables(svg.LIGHT), svg.variables(svg.DARK)
    rules = f":root{{{light}color-scheme:light}}@media(prefers-color-scheme:dark){{:root{{{dark}color-scheme:dark}}}}\n"
    return rules + (PAGE / "play.css").read_text()


def _lead(size_bytes: int, world: World) -> str:
    where = "runs in this page as well" if world.physics else "is streamed to this page"
    return f"Every action is taken in this page, by the exported WebAssembly of {size_bytes:,} bytes. The environment {where}."


def _more(contract: exporters.contract.Contract) -> str:
    layout = exporters.contract.input_layout(contract.spec.observation_space, contract.view)
    size = sum(part["count"] for part in layout)
    return f"and {size - MOST_BARS:,} numbers more" if size > MOST_BARS else ""


def _facts(module: bytes, contract: exporters.contract.Contract, world: World, seed: int, served: bool) -> str:
    """What the script reads, as JSON that cannot end its element."""
    observations, actions = naming.known_names(contract.spec.name)
    facts: dict[str, Any] = {
        "wasm": base64.b64encode(module).decode(),
        "seed": seed,
        "fps": world.fps,
        "aspect": world.aspect,
        "physics": world.physics or None,
        "starts": world.starts or None,
        "served": served,
        "rows": MOST_BARS,
        "observations": _named(observations, contract),
        "actions": list(actions),
        "params": _said(contract.head, actions),
    }
    text = json.dumps(facts, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _said(head: Head, actions: Sequence[str]) -> list[str]:
    """One name for each of the head's numbers, where there is a better one than its place."""
    if head.kind in ("categorical", "q"):
        return list(actions)
    if head.kind in ("gaussian", "squashed"):
        return [f"{what} {i}" for what in ("mean", "log std") for i in range(sum(head.sizes))]
    return []


def _named(words: Sequence[str], contract: exporters.contract.Contract) -> list[str]:
    """One name for each of the numbers that the policy reads; of a Dict observation its keys."""
    layout = exporters.contract.input_layout(contract.spec.observation_space, contract.view)
    if words and sum(part["count"] for part in layout) == len(words):
        return list(words)
    names = [
        f"{printable(part['key'], 30)} {i}".strip() if part["count"] > 1 else printable(part["key"] or i, 30)
        for part in layout
        for i in range(min(part["count"], MOST_BARS))
    ]
    return names[:MOST_BARS]
