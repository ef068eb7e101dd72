"""What the teacher tests share: a payload that only creates an empty marker file, and an audit recorder.

Every canary test has a positive control: the unsafe API on the same bytes must fire, or the test proves nothing.
"""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).parent.parent / "fixtures"
FORBIDDEN = {
    "pickle.find_class",
    "exec",
    "compile",
    "import",
    "marshal.loads",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.fork",
    "socket.connect",
    "ctypes.dlopen",
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_recorders: list[Counter[str]] = []  # an audit hook can never be removed, so one hook feeds whoever is listening


def _hook(event: str, arguments: tuple) -> None:
    if _recorders and (event in FORBIDDEN or (event == "open" and (arguments[2] or 0) & WRITING)):
        for recorder in _recorders:
            recorder[event] += 1


sys.addaudithook(_hook)


class Canary:
    """Unpickling it opens the marker for writing: that, and nothing else."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple:
        return open, (self.marker, "w")


class Trap:
    """A marker file and the payload that creates it."""

    def __init__(self, folder: Path) -> None:
        self.marker = folder / "CANARY"
        self.payload = Canary(self.marker)

    @property
    def blob(self) -> bytes:
        return pickle.dumps(self.payload)

    def fired(self) -> bool:
        """Whether the payload ran since the last call; clears the marker."""
        hit = self.marker.exists()
        self.marker.unlink(missing_ok=True)
        return hit


@contextmanager
def recording() -> Iterator[Counter[str]]:
    """Count forbidden audit events in the block."""
    events: Counter[str] = Counter()
    _recorders.append(events)
    try:
        yield events
    finally:
        _recorders.remove(events)


def with_member(source: Path, target: Path, name: str, content: bytes) -> Path:
    """A copy of a zip with one member replaced or added."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.namelist():
            if member != name:
                new.writestr(member, old.read(member))
        new.writestr(name, content)
    return target


def with_settings(source: Path, target: Path, **changes: object) -> Path:
    """A copy of a Stable-Baselines3 zip with entries of `data` replaced; None removes one."""
    with zipfile.ZipFile(source) as archive:
        settings = json.loads(archive.read("data"))
    for key, value in changes.items():
        settings[key] = value
    return with_member(
        source, target, "data", json.dumps({k: v for k, v in settings.items() if v is not None}).encode()
    )


def with_weights(source: Path, target: Path, change: Callable[[dict], dict]) -> Path:
    """A copy whose state dict went through `change`."""
    import torch

    with zipfile.ZipFile(source) as archive:
        weights = torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)
    buffer = io.BytesIO()
    torch.save(change(dict(weights)), buffer)
    return with_member(source, target, "policy.pth", buffer.getvalue())


def serialised(blob: bytes) -> dict[str, str]:
    """An entry of `data` that hides a pickle, as Stable-Baselines3 writes them."""
    return {":type:": "<class 'x'>", ":serialized:": base64.b64encode(blob).decode()}


def numpy_rows(count: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)
