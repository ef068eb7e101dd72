"""Seeds by counting, not by state: every random number is a function of (run seed, stage, counters).

So no generator is ever stored, a killed round is played again exactly, and the streams of the stages are disjoint by
construction: an episode's seed carries its stage in its top bits.
"""

from __future__ import annotations

import hashlib

import numpy as np

STAGES = (
    "train",
    "verify",
    "bounds",
    "collect",
    "race",
    "polish",
    "select",
    "proof",
    "fidelity",
    "teach",
    "video",
    "golden",
    "diagnose",
    "gallery",
    "stress",
)
_STAGE_BITS, _INDEX_BITS = 4, 27  # 31 bits together: every environment accepts a non-negative 32-bit integer


def episode_seed(run_seed: int, stage: str, index: int) -> int:
    """Seed of episode number `index` of a stage; distinct for all index < 2**27, distinct across stages.

    >>> episode_seed(0, "proof", 3) != episode_seed(0, "race", 3)
    True
    """
    offset = _hash(run_seed, stage) & ((1 << _INDEX_BITS) - 1)
    return (STAGES.index(stage) << _INDEX_BITS) | ((offset + index) & ((1 << _INDEX_BITS) - 1))


def stage_of(seed: int) -> str:
    """The stage whose stream a seed belongs to ("" for seeds from outside)."""
    stage = seed >> _INDEX_BITS
    return STAGES[stage] if 0 <= stage < len(STAGES) else ""


def generator(run_seed: int, stage: str, *counters: int) -> np.random.Generator:
    """A counter-based generator (Philox, Salmon et al. 2011) keyed by run seed, stage and counters."""
    return np.random.Generator(np.random.Philox(key=_hash(run_seed, stage, *counters)))


def _hash(*parts: object) -> int:
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=16).digest()
    return int.from_bytes(digest, "little")
