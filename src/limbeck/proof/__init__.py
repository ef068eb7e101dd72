"""Proof: what a student keeps of its teacher, with an error probability that holds whenever one looks.

bounding (floor and ceiling) > planning (how long) > proving (the verdict) > agreement, timing (what else to know);
eprocess holds the statistics, returns the claims, cache what several proofs share, sharing how a family's claims share
alpha. Measured, not proved: tails,
comparing (several runs), robustness (disturbances, dynamics, attacks), simplicity, saliency.
"""

from limbeck.proof.agreement import Fidelity, fidelity
from limbeck.proof.blindness import Blindness
from limbeck.proof.blindness import measure as blindness_of
from limbeck.proof.blindness import sentence as gap_in_words
from limbeck.proof.bounding import bounds_for
from limbeck.proof.cache import ReturnCache
from limbeck.proof.comparing import Comparison, Profile, compare
from limbeck.proof.disturbances import DISTURBANCES
from limbeck.proof.planning import plan
from limbeck.proof.proving import claim_of, prove
from limbeck.proof.regret import Judge, discounted, error_of, expected_regret
from limbeck.proof.returns import Triples, retention, retention_interval
from limbeck.proof.sharing import Sharing, sequences
from limbeck.proof.tails import tails_of
from limbeck.proof.timing import latency, latency_of
from limbeck.proof.unproved import Measured, measure

__all__ = [
    "DISTURBANCES",
    "Blindness",
    "Comparison",
    "Fidelity",
    "Judge",
    "Measured",
    "Profile",
    "ReturnCache",
    "Sharing",
    "Triples",
    "blindness_of",
    "bounds_for",
    "claim_of",
    "compare",
    "discounted",
    "error_of",
    "expected_regret",
    "fidelity",
    "gap_in_words",
    "latency",
    "latency_of",
    "measure",
    "plan",
    "prove",
    "retention",
    "retention_interval",
    "sequences",
    "tails_of",
]
