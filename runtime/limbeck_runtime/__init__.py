"""Play policies that Limbeck exported, with numpy alone.

    import limbeck_runtime

    policy = limbeck_runtime.load("artifacts/mlp-64x64")    # or a policy.safetensors
    policy.reset()                                          # at every episode's start
    action = policy.step(obs)                               # one observation in, the executed action out

`check(folder)` replays every target that can run here. Errors are InputError, and StorageError for files that are not what was exported: both LimbeckErrors.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from limbeck_runtime._limbeck.errors import InputError, LimbeckError, StorageError
from limbeck_runtime.loading import CheckRow, Policy, check, load

try:
    __version__ = version("limbeck-runtime")
except PackageNotFoundError:  # imported from a folder, not installed
    __version__ = "0"

__all__ = ["CheckRow", "InputError", "LimbeckError", "Policy", "StorageError", "__version__", "check", "load"]
