"""Proof: what a student keeps of its teacher, with an error probability that holds whenever one looks.

bounding (floor and ceiling) > planning (how long) > proving (the verdict) > agreement, timing (what else to know);
eprocess holds the statistics, returns the claims, cache what several proofs share.
"""

from limbeck.proof.agreement import Fidelity, fidelity
from limbeck.proof.bounding import bounds_for
from limbeck.proof.cache import ReturnCache
from limbeck.proof.planning import plan
from limbeck.proof.proving import Contender, FamilyVerdict, prove, prove_family
from limbeck.proof.returns import Triples, retention, retention_interval
from limbeck.proof.timing import latency, latency_of

__all__ = [
    "Contender",
    "FamilyVerdict",
    "Fidelity",
    "ReturnCache",
    "Triples",
    "bounds_for",
    "fidelity",
    "latency",
    "latency_of",
    "plan",
    "prove",
    "prove_family",
    "retention",
    "retention_interval",
]
