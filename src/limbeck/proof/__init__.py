"""Proof: what a student keeps of its teacher, with an error probability that holds whenever one looks.

bounding (floor and ceiling) > planning (how long) > proving (the verdict) > agreement, timing (what else to know);
eprocess holds the statistics, returns the claims, cache what several proofs share.
"""

from limbeck.proof.agreement import Fidelity, fidelity
from limbeck.proof.blindness import Blindness
from limbeck.proof.blindness import measure as blindness_of
from limbeck.proof.blindness import sentence as gap_in_words
from limbeck.proof.bounding import bounds_for
from limbeck.proof.cache import ReturnCache
from limbeck.proof.planning import plan
from limbeck.proof.proving import Contender, FamilyVerdict, prove, prove_family
from limbeck.proof.regret import Judge, discounted, error_of, expected_regret
from limbeck.proof.returns import Triples, retention, retention_interval
from limbeck.proof.timing import latency, latency_of
from limbeck.proof.unproved import Measured, measure

__all__ = [
    "Blindness",
    "Contender",
    "FamilyVerdict",
    "Fidelity",
    "Judge",
    "Measured",
    "ReturnCache",
    "Triples",
    "blindness_of",
    "bounds_for",
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
    "prove_family",
    "retention",
    "retention_interval",
]
