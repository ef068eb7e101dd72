"""Returns that several proofs share: teacher and random play meet a proof's seeds once for the whole family."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from limbeck import rollout, seeding, storage
from limbeck.contracts import Episodes, Mode, Policy, Task
from limbeck.errors import InputError, StorageError
from limbeck.proof.eprocess import Reals

Rows = dict[int, tuple[float, int]]  # seed -> return, steps


class ReturnCache:
    """Returns by (who plays, seed), in memory, and in one JSON file where a path is given.

    `owner` says whose returns these are (`identity.of_teacher`): a file of another owner, or of nobody, is refused.
    """

    def __init__(self, path: Path | None = None, owner: str = "") -> None:
        if path is not None and not owner:
            raise InputError("a file of returns was opened without the teacher's identity. Give its owner.")
        self._path, self._owner = path, owner
        self._played: dict[str, Rows] = {}
        self._bills: dict[str, int] = {}  # steps that each claim was the first to need
        if path is not None and path.exists():
            self._read(path)

    def returns(
        self, label: str, policy: Policy | None, task: Task, run_seed: int, start: int, stop: int, mode: Mode,
        claim: str = "",
    ) -> Reals:  # fmt: skip
        """Returns [stop - start] of the proof's episodes start..stop-1; only those not stored are played.

        `policy` None plays at random. `label` names who plays: two policies must never share one. `claim` names the
        proof that is billed for what is played now.
        """
        known = self._played.setdefault(f"{task.name}/{label}/seed {run_seed}", {})
        seeds = proof_seeds(run_seed, start, stop)
        missing = next((i for i, seed in enumerate(seeds) if seed not in known), len(seeds))
        if missing < len(seeds):
            played = play_proof(policy, task, run_seed, start + missing, stop, mode)
            rows = zip(played.seeds.tolist(), played.returns.tolist(), played.lengths.tolist(), strict=True)
            known.update({seed: (value, length) for seed, value, length in rows})
            self._bills[claim] = self.bill(claim) + played.env_steps
            self._write()
        return np.asarray([known[seed][0] for seed in seeds])

    def bill(self, claim: str = "") -> int:
        """Steps that this claim was the first to need, however often its proof was killed and played again."""
        return self._bills.get(claim, 0)

    def _write(self) -> None:
        if self._path is not None:
            content = {"owner": self._owner, "bills": self._bills, "played": self._played}
            storage.write_json(self._path, content)

    def _read(self, path: Path) -> None:
        data = storage.read_json(path)
        try:
            owner, self._bills = str(data["owner"]), {str(claim): int(steps) for claim, steps in data["bills"].items()}
            self._played = {
                label: {int(seed): (float(value), int(steps)) for seed, (value, steps) in rows.items()}
                for label, rows in data["played"].items()
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StorageError(f"{path} is damaged: {error}. Remove it; its episodes are then played again.") from error
        if owner != self._owner:
            raise StorageError(f"{path} holds the returns of another teacher. Remove it, or choose another --out.")


def proof_seeds(run_seed: int, start: int, stop: int) -> list[int]:
    """Seeds of the proof's episodes start..stop-1, in the order in which they count."""
    return [seeding.episode_seed(run_seed, "proof", i) for i in range(start, stop)]


def play_proof(policy: Policy | None, task: Task, run_seed: int, start: int, stop: int, mode: Mode) -> Episodes:
    """The proof's episodes start..stop-1: the same numbers however they are cut into calls. `policy` None: random."""
    seeds = proof_seeds(run_seed, start, stop)
    return rollout.play(
        policy, task, seeds, mode="uniform" if policy is None else mode, run_seed=run_seed, number=start
    )
