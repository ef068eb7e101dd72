"""Play a one-file policy. Loading it runs its code: play only files from people you trust."""

from __future__ import annotations

import importlib.util
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limbeck.contracts import Head, Observation, PolicyOutput, Spec, State
from limbeck.errors import InputError, printable


def load(path: Path, spec: Spec, head: Head) -> PythonPolicy:
    """The policy.py of an artefact."""
    return PythonPolicy(_imported(path), spec, head)


class _Uncached(SourceFileLoader):
    """Reads and writes no __pycache__: of what lies there the checksums of an artefact say nothing."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


class PythonPolicy:
    """The file as a policy on batches. `action` of its output is what the file executed."""

    def __init__(self, module: Any, spec: Spec, head: Head) -> None:
        self.spec, self.head, self._module = spec, head, module
        self._player = module.Policy()

    def initial_state(self, batch: int) -> State:
        return dict(self._player.initial(batch))

    def __call__(self, obs: Observation, state: State, first: NDArray[np.bool_]) -> PolicyOutput:
        ones = [{k: v[i] for k, v in obs.items()} if isinstance(obs, dict) else obs[i] for i in range(len(first))]
        rows, masks = zip(*(self._module.flat_row(one, self._player.described["parts"]) for one in ones), strict=True)
        mask = None if masks[0] is None else np.concatenate(masks)
        params, after = self._player.said(np.concatenate(rows), mask, state, first)
        return PolicyOutput(params, after, action=self._player.executed(params))


def _imported(path: Path) -> Any:
    """The file as a module that `import` does not find, so that two of them do not meet."""
    name = "limbeck_exported_policy"
    spec = importlib.util.spec_from_file_location(name, path, loader=_Uncached(name, str(path)))
    if not path.is_file() or spec is None or spec.loader is None:
        raise InputError(f"{printable(path)} is no Python file. Export the policy again.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        module.Policy  # noqa: B018  # asked for, so that its absence is told here
    except Exception as error:  # what a file that is none of ours can raise
        raise InputError(f"{printable(path)} is damaged: {printable(error)}. Export the policy again.") from error
    return module
