"""Policies of Stable-Baselines3 and sb3-contrib, rebuilt from their weights and from what the zip states in the open.

zip.py         the settings and weights of a zip; every pickled blob is dropped unread
families.py    which algorithm family a state dict is, and its actor and critic as layers
extractors.py  the features extractors: flatten, NatureCNN, one for each entry of a Dict
weights.py     torch tensors as layers
critics.py     the Q(s, a) of SAC, TD3, DDPG and TQC
policy.py      network, view, normaliser and head as one Blueprint
"""

from limbeck.teachers.sb3.families import known
from limbeck.teachers.sb3.policy import algorithm, facts, policy, rebuild, spec_of, trained_normalised
from limbeck.teachers.sb3.zip import Saved, from_weights, is_sb3, read

__all__ = [
    "Saved", "algorithm", "facts", "from_weights", "is_sb3", "known", "policy", "read", "rebuild", "spec_of", "trained_normalised",
]  # fmt: skip
