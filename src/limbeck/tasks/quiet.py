"""Libraries talk while they are imported and built; what they say there is no news to whoever asked for a proof.

Python's warnings are silenced, pygame's greeting is switched off as it documents, and MuJoCo's notes on its own model
files (which it would also write into a MUJOCO_LOG.TXT of the working folder) are caught. What an environment says
while it is played stays visible. Where there is no screen, SDL and MuJoCo are told so: they complain otherwise, or, in
MuJoCo's case, end the process.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet(mujoco: bool = False) -> Iterator[None]:
    """A block in which libraries are imported or environments built; `mujoco`: MuJoCo may be one of them."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    if not os.environ.get("DISPLAY") and not os.environ.get("WAYLAND_DISPLAY") and sys.platform == "linux":
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        os.environ.setdefault("MUJOCO_GL", "egl")
    engine = importlib.import_module("mujoco") if mujoco and importlib.util.find_spec("mujoco") else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if engine is None:
            yield
            return
        before = engine.get_mju_user_warning()
        engine.set_mju_user_warning(lambda said: None)
        try:
            yield
        finally:
            engine.set_mju_user_warning(before)
