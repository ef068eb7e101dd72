"""The names that Stable-Baselines3 gives to the modules which a blueprint's layers were made of.

A layer of a blueprint is a linear module and the activation behind it: `layers.0.linear` is what
`mlp_extractor.policy_net.0` gives, `layers.0` is what `mlp_extractor.policy_net.1` gives.
"""

from __future__ import annotations

from collections.abc import Mapping

from limbeck.contracts import Blueprint, Conv, Dense, TeacherInfo
from limbeck.runtimes.numpy import BEFORE

_BODIES = {  # algorithm -> the sequence that its dense layers lie in, and the module behind it
    "PPO": ("mlp_extractor.policy_net", "action_net"),
    "A2C": ("mlp_extractor.policy_net", "action_net"),
    "PPO or A2C": ("mlp_extractor.policy_net", "action_net"),
    "TRPO": ("mlp_extractor.policy_net", "action_net"),
    "MaskablePPO": ("mlp_extractor.policy_net", "action_net"),
    "DQN": ("q_net.q_net", ""),
    "QRDQN": ("quantile_net.quantile_net", "-"),  # its last module gives quantiles, of which the blueprint has the mean
    "SAC": ("actor.latent_pi", "-"),  # two modules give mean and deviation, one layer here
    "TQC": ("actor.latent_pi", "-"),
    "TD3": ("actor.mu", "-"),  # a tanh lies behind it
    "DDPG": ("actor.mu", "-"),
}
_CONVOLUTIONS = 3  # of NatureCNN


def aliases(info: TeacherInfo, blueprint: Blueprint) -> Mapping[str, str]:
    """Module name -> layer name of a saved Stable-Baselines3 policy; empty where its layers are laid out otherwise."""
    body, ending = _BODIES.get(info.algorithm, ("", ""))
    layers = blueprint.layers
    old = str(info.stated.get("stable_baselines3") or "").startswith(("0.", *(f"1.{minor}." for minor in range(8))))
    if info.format != "sb3" or not body or (old and body.startswith("mlp")):  # before 1.8 some layers were shared
        return {}
    found: dict[str, str] = {}
    extracted = 0
    if isinstance(layers[0], Conv):
        extracted = _CONVOLUTIONS + 1
        extractor = f"{body.rpartition('.')[0]}." if not body.startswith("mlp") else ""
        names = [f"{extractor}features_extractor.cnn.{2 * i}" for i in range(_CONVOLUTIONS)]
        for i, name in enumerate([*names, f"{extractor}features_extractor.linear.0"]):
            found |= _pair(name, i)
    dense = layers[extracted:] if ending == "" else layers[extracted:-1]
    if not all(isinstance(layer, Dense) for layer in dense):
        return {}
    for i in range(len(dense)):
        found |= _pair(f"{body}.{2 * i}", extracted + i)
    if ending == "":  # nothing lies behind the last module
        found[f"{body}.{2 * (len(dense) - 1)}"] = f"layers.{len(layers) - 1}"
        found.pop(f"{body}.{2 * len(dense) - 1}")
    elif ending != "-" and isinstance(layers[-1], Dense) and blueprint.head.kind not in ("gaussian", "squashed"):
        found[ending] = f"layers.{len(layers) - 1}"
    return found


def _pair(linear: str, layer: int) -> dict[str, str]:
    """A linear module and the activation that follows it in the same sequence."""
    sequence, _, place = linear.rpartition(".")
    return {linear: f"layers.{layer}{BEFORE}", f"{sequence}.{int(place) + 1}": f"layers.{layer}"}
