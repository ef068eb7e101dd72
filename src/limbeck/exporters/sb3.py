"""Back to Stable-Baselines3: a zip that its own `load` opens, so that reinforcement learning goes on from a student.

    head                                                  algorithm   the student becomes
    categorical, multicategorical, bernoulli              PPO         mlp_extractor.policy_net, action_net
    gaussian, deterministic                               PPO         the same, log_std constant
    q                                                     DQN         q_net and its target
    squashed                                              SAC         actor.latent_pi, actor.mu, actor.log_std
    tanh                                                  TD3         actor.mu and its target

Critics are fresh: a student has none. The library is imported here and in `teaching.sb3`, when it is needed. Its
loader unpickles, so that playing such a zip runs what is in it: play only folders from people you trust.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from limbeck import blueprints, seeding, spaces, storage
from limbeck.contracts import (
    Array,
    Artifact,
    Blueprint,
    Dense,
    Floats,
    Head,
    HeadKind,
    Layer,
    Observation,
    Policy,
    PolicyOutput,
    Spec,
    State,
    View,
)
from limbeck.errors import InputError, missing_library, printable
from limbeck.exporters.contract import Contract, check_exportable
from limbeck.runtimes.numpy import apply

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

FILE = "policy.zip"
SPREAD = "spread.safetensors"  # what a gaussian student says of its spread in every state; PPO's is constant
ALGORITHMS: Mapping[HeadKind, str] = {
    "categorical": "PPO", "multicategorical": "PPO", "bernoulli": "PPO", "gaussian": "PPO", "deterministic": "PPO",
    "q": "DQN", "squashed": "SAC", "tanh": "TD3",
}  # fmt: skip
ALLOWED = "Allowed: linear and mlp:* students with one activation, without history, action mask or clipped normaliser."
LEAST_LOG_STD, MOST_LOG_STD = -5.0, 2.0  # of the spread that exploration begins with
SHARE_OF_RANGE = 0.1  # of the action's range: the spread where the student says none
_MODULES = {
    "relu": "ReLU", "tanh": "Tanh", "elu": "ELU", "leaky_relu": "LeakyReLU", "gelu": "GELU", "silu": "SiLU",
    "sigmoid": "Sigmoid", "hardtanh": "Hardtanh", "softplus": "Softplus", "identity": "Identity",
}  # fmt: skip
_CRITIC = {"PPO": ("vf", [64, 64]), "SAC": ("qf", [256, 256]), "TD3": ("qf", [400, 300])}  # the library's defaults


def export(blueprint: Blueprint, folder: Path) -> Artifact:
    """Write policy.zip; what the student does not have (critics, the spread of PPO) begins fresh."""
    check_exportable(blueprint)
    name, dense = ALGORITHMS[blueprint.head.kind], _dense(blueprint)
    model = _model(name, blueprint.spec, dense)
    n = sum(blueprint.head.sizes)
    weights = _weights(name, dense, blueprint.head)
    files = [FILE]
    if name == "PPO" and not blueprint.head.discrete:
        weights["log_std"] = _spread(blueprint.head, dense)
    if blueprint.head.kind == "gaussian":
        last = dense[-1]
        storage.write_arrays(folder / SPREAD, {"weight": last.weight[:, n:], "bias": last.bias[n:]}, {})
        files.append(SPREAD)
    _put(model, weights)
    storage.write_bytes(folder / FILE, _zip(model))
    note = f"for {name}; {'targets are its own' if name == 'DQN' else 'its critic is untrained'}"
    return Artifact("sb3", folder, tuple(files), (folder / FILE).stat().st_size, compiled=True, note=note)


def load(folder: Path, contract: Contract) -> Policy:
    """Open the zip with Stable-Baselines3 itself, which plays it."""
    path, name = folder / FILE, ALGORITHMS[contract.head.kind]
    if not path.is_file():
        raise InputError(f"{printable(folder)} holds no {FILE}. Export the policy again.")
    model = getattr(_library(), name).load(path, device="cpu")
    spread = storage.read_arrays(folder / SPREAD)[0] if contract.head.kind == "gaussian" else {}
    return ModelPolicy(model, contract.spec, contract.head, contract.view, spread)


def missing() -> str:
    there = importlib.util.find_spec("stable_baselines3") is not None
    return "" if there else 'no stable-baselines3: pip install "limbeck[sb3]"'


def unfit(blueprint: Blueprint) -> str:
    try:
        _dense(blueprint)
    except InputError as error:
        return str(error).removesuffix(".")
    return ""


def _library() -> Any:
    try:
        import stable_baselines3
    except ImportError as error:
        raise missing_library("stable-baselines3", "sb3", "the sb3 target") from error
    return stable_baselines3


# ---------------------------------------------------------------- the student as dense layers on the library's input


def _dense(blueprint: Blueprint) -> list[Dense]:
    """The student's layers on the observation as the library flattens it, normaliser and view folded in."""
    folded = blueprints.fold(blueprint)
    check(blueprint.spec, blueprint.view)
    for layer in folded.layers:
        if not isinstance(layer, Dense):
            raise _refused(f"has a {layer.kind} layer")
    if folded.normaliser is not None:
        raise _refused("has a normaliser that clips, or whose mean is far from zero for its spread")
    dense = _merged([layer for layer in folded.layers if isinstance(layer, Dense)])
    inner = {layer.activation for layer in dense[:-1]}
    if len(inner) > 1 or dense[-1].activation != "identity" or not inner <= set(_MODULES):
        raise _refused(f"has the activations {', '.join(layer.activation for layer in dense)}")
    columns, width = _columns(blueprint.spec.observation_space, blueprint.view)
    weight = np.zeros((width, dense[0].outputs), np.float32)
    np.add.at(weight, columns, dense[0].weight)  # a place may be seen twice
    return [Dense(weight, dense[0].bias, dense[0].activation), *dense[1:]]


def _refused(why: str) -> InputError:
    return InputError(f"Stable-Baselines3 has no policy like this student, which {why}. {ALLOWED}")


def _merged(dense: Sequence[Dense]) -> list[Dense]:
    """Fewer layers that do the same: one without an activation, as of low-rank students, goes into the next."""
    made = [dense[0]]
    for layer in dense[1:]:
        before = made[-1]
        if before.activation == "identity":
            wide = before.weight.astype(np.float64), layer.weight.astype(np.float64)
            made[-1] = Dense(
                (wide[0] @ wide[1]).astype(np.float32),
                (before.bias @ wide[1] + layer.bias).astype(np.float32),
                layer.activation,
            )
        else:
            made.append(layer)
    return made


def check(spec: Spec, view: View) -> None:
    """Raise InputError for views and spaces of which the library has no such policy."""
    if view.history > 1 or view.mask is not None:
        raise _refused("sees a history" if view.history > 1 else "chooses under an action mask")
    space, action = spec.observation_space, spec.action_space
    parts = list(space.spaces.values()) if isinstance(space, gym.spaces.Dict) else [space]
    if any(isinstance(part, gym.spaces.Box) and part.dtype == np.uint8 and len(part.shape) == 3 for part in parts):
        raise _refused("sees pictures as plain numbers")
    for part in [*parts, action]:
        if np.any(getattr(part, "start", 0)):
            raise _refused(f"meets a space that does not begin at 0 ({part})")
        if isinstance(part, gym.spaces.MultiDiscrete) and part.nvec.ndim > 1:
            raise _refused(f"meets a space of several axes ({part})")
    if isinstance(action, gym.spaces.Box) and not np.isfinite([action.low, action.high]).all():
        raise _refused(f"acts without bounds ({action})")
    if isinstance(action, gym.spaces.MultiBinary) and len(action.shape) > 1:
        raise _refused(f"meets a space of several axes ({action})")


def _columns(space: gym.Space[Any], view: View) -> tuple[NDArray[np.int64], int]:
    """Where the library's flat vector has each number that the student sees, and how long that vector is."""
    if isinstance(space, gym.spaces.Dict):
        widths = {key: spaces.flat_size(part) for key, part in space.spaces.items()}
        begins = dict(zip(widths, np.cumsum([0, *widths.values()]), strict=False))
        keys: Sequence[str] = view.keys if view.keys is not None else sorted(widths)
        places = np.concatenate([begins[key] + np.arange(widths[key]) for key in keys])
        width = sum(widths.values())
    else:
        width = spaces.flat_size(space)
        places = np.arange(width)
    return (places if view.indices is None else places[list(view.indices)]).astype(np.int64), width


def _spread(head: Head, dense: Sequence[Layer]) -> Floats:
    """[n] logarithms of the spread that PPO explores with at first: the student's at the observation 0, or a share of
    the action's range."""
    if head.kind == "gaussian":
        row = np.zeros((1, dense[0].inputs), np.float32)
        for layer in dense:
            row = apply(layer, row)
        said = row[0, sum(head.sizes) :]
    else:
        low, high = (np.array(bound) for bound in (head.low, head.high))
        said = np.log(SHARE_OF_RANGE * np.maximum(high - low, 1e-6))
    return np.clip(said, LEAST_LOG_STD, MOST_LOG_STD).astype(np.float32)


# ---------------------------------------------------------------- the library's model


def _model(name: str, spec: Spec, dense: Sequence[Dense]) -> BaseAlgorithm:
    """An untrained model of the student's shape, the same for the same student."""
    import torch

    widths = [layer.outputs for layer in dense[:-1]]
    activation = getattr(torch.nn, _MODULES[dense[0].activation if widths else "relu"])
    shape: Any = widths
    if name in _CRITIC:
        side, critic = _CRITIC[name]
        shape = {"pi": widths, side: critic}
    kwargs = {"net_arch": shape, "activation_fn": activation, "normalize_images": False}
    greedy = {"exploration_initial_eps": 0.1} if name == "DQN" else {}  # a student need not begin at random
    policy = "MultiInputPolicy" if isinstance(spec.observation_space, gym.spaces.Dict) else "MlpPolicy"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.episode_seed(0, "train", 0))
        model: BaseAlgorithm = getattr(_library(), name)(
            policy, _Spaces(spec), policy_kwargs=kwargs, device="cpu", **greedy
        )
    return model


class _Spaces(gym.Env[Any, Any]):
    """An environment that has spaces and nothing else: all that a model asks for before it learns."""

    def __init__(self, spec: Spec) -> None:
        self.observation_space, self.action_space = (
            copy.deepcopy(s) for s in (spec.observation_space, spec.action_space)
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.observation_space.sample(), {}


def _weights(name: str, dense: Sequence[Dense], head: Head) -> dict[str, Array]:
    """The library's tensors that the student fills, by their names."""
    *body, last = dense
    n = sum(head.sizes)
    heads: dict[str, tuple[Array, Array]] = {}
    if name == "PPO":
        trunk, heads["action_net"] = "mlp_extractor.policy_net", (last.weight[:, :n], last.bias[:n])
    elif name == "SAC":
        trunk = "actor.latent_pi"
        heads = {"actor.mu": (last.weight[:, :n], last.bias[:n]), "actor.log_std": (last.weight[:, n:], last.bias[n:])}
    else:
        trunk = "q_net.q_net" if name == "DQN" else "actor.mu"
        heads[f"{trunk}.{2 * len(body)}"] = (last.weight, last.bias)
    places = {f"{trunk}.{2 * i}": (layer.weight, layer.bias) for i, layer in enumerate(body)} | heads
    filled = {f"{k}.weight": w.T for k, (w, _) in places.items()} | {f"{k}.bias": b for k, (_, b) in places.items()}
    if name in ("DQN", "TD3"):
        own = "q_net" if name == "DQN" else "actor"
        filled |= {f"{own}_target.{key.removeprefix(own + '.')}": value for key, value in filled.items()}
    return filled


def _put(model: BaseAlgorithm, weights: Mapping[str, Array]) -> None:
    import torch

    there = model.policy.state_dict()
    for name, values in weights.items():
        if name not in there or tuple(there[name].shape) != values.shape:
            raise InputError(
                f"this version of Stable-Baselines3 has no tensor {name} of shape {values.shape}. Install one from 2.4 on."
            )
        there[name] = torch.from_numpy(np.array(values, np.float32))
    model.policy.load_state_dict(there)


def _zip(model: BaseAlgorithm) -> bytes:
    """The library's file with the clock left out of it, so that the same student gives the same bytes."""
    written, fixed = io.BytesIO(), io.BytesIO()
    model.save(written)
    with zipfile.ZipFile(written) as source, zipfile.ZipFile(fixed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.namelist():
            target.writestr(zipfile.ZipInfo(entry), source.read(entry), zipfile.ZIP_DEFLATED)
    return fixed.getvalue()


# ---------------------------------------------------------------- the model as a policy


@dataclass(frozen=True)
class ModelPolicy:
    """A loaded zip that plays: the action is `model.predict`'s, the row is what its network says before that."""

    model: BaseAlgorithm
    spec: Spec
    head: Head
    view: View
    spread: Mapping[str, Array]

    def initial_state(self, batch: int) -> State:
        return {}

    def __call__(self, obs: Observation, state: State, first: NDArray[np.bool_]) -> PolicyOutput:
        given = {key: np.asarray(v) for key, v in obs.items()} if isinstance(obs, dict) else np.asarray(obs)
        action, _ = self.model.predict(given, deterministic=True)
        executed = np.asarray(action).reshape(len(first), *self.head.shape)
        return PolicyOutput(
            self._row(given), {}, action=executed.astype(np.int64 if self.head.discrete else np.float32)
        )

    def _row(self, obs: Any) -> Floats:
        import torch

        policy: Any = self.model.policy
        with torch.no_grad():
            seen = policy.obs_to_tensor(obs)[0]
            match ALGORITHMS[self.head.kind]:
                case "PPO":
                    hidden = policy.mlp_extractor.forward_actor(
                        policy.extract_features(seen, policy.pi_features_extractor)
                    )
                    parts = [policy.action_net(hidden).numpy()]
                    if self.head.kind == "gaussian":
                        parts.append(hidden.numpy() @ self.spread["weight"] + self.spread["bias"])
                case "DQN":
                    parts = [policy.q_net(seen).numpy()]
                case "SAC":
                    actor = policy.actor
                    hidden = actor.latent_pi(actor.extract_features(seen, actor.features_extractor))
                    parts = [actor.mu(hidden).numpy(), actor.log_std(hidden).numpy()]
                case _:
                    actor = policy.actor
                    parts = [actor.mu[:-1](actor.extract_features(seen, actor.features_extractor)).numpy()]
        return np.concatenate(parts, axis=1).astype(np.float32)
