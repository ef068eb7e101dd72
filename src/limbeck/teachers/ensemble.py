"""Several teachers as one: `ensemble:A,B`, `ensemble:confidence:A,B`, `ensemble:value:A,B`, or a list of teachers.

    mean        categorical, multicategorical   mean of log-probabilities: the logarithmic pool with equal weights
                                                (Genest & Zidek 1986, eq. 3.1), a product of experts (Hinton 2002)
                bernoulli                       mean of logits: the same pool
                gaussian, squashed              the same pool of Gaussians, squashed ones before tanh: precisions are
                                                averaged, means weighed by precision
                q                               mean of Q - max Q, plus the mean of max Q: no member's level decides
                deterministic, tanh             mean of the rows
    confidence  in every state the row of the member whose distribution has the lowest entropy, the first among equals
    value       in every state the row of the member that values the state highest: V it states, or max Q; only for
                members trained on one scale of reward

Heads of different kinds: continuous ones become the actions they would execute, and those are averaged; action values
and logits are never mixed, for values are no logits at any known temperature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from limbeck import distributions, identity, spaces
from limbeck.contracts import (
    Floats,
    Head,
    Observation,
    Policy,
    PolicyOutput,
    Spec,
    State,
    Teacher,
    TeacherInfo,
)
from limbeck.errors import InputError, printable
from limbeck.teachers import modules, stated

Fusion = Literal["mean", "confidence", "value"]
FUSIONS: tuple[Fusion, ...] = get_args(Fusion)
PREFIX = "ensemble:"
MAX_MEMBERS = 32
_CONTINUOUS = ("gaussian", "squashed", "deterministic", "tanh")
_CERTAIN = ("categorical", "multicategorical", "bernoulli", "gaussian", "squashed")  # heads that have an entropy


def is_named(source: object) -> bool:
    return isinstance(source, str) and source.startswith(PREFIX)


def parse(text: str) -> tuple[Fusion, tuple[str, ...]]:
    """The fusion and the members of `ensemble:[FUSION:]A,B,...`; commas separate, so no name may hold one.

    >>> parse("ensemble:value:a.zip,hf://org/repo:b.zip")
    ('value', ('a.zip', 'hf://org/repo:b.zip'))
    """
    rest, fusion = text.removeprefix(PREFIX), FUSIONS[0]
    for name in FUSIONS:
        if rest.startswith(f"{name}:"):
            rest, fusion = rest.removeprefix(f"{name}:"), name
            break
    members = tuple(part.strip() for part in rest.split(","))
    _check_count(members)
    if not all(members) or any(is_named(member) for member in members):
        raise InputError(
            f"{printable(text)} names no ensemble. Allowed: ensemble:A,B or ensemble:{'|'.join(FUSIONS)}:A,B, files or hf:// addresses without commas."
        )
    return fusion, members


def of(members: Sequence[Teacher], fusion: Fusion = "mean") -> Teacher:
    """The ensemble of loaded teachers. Raises InputError where they cannot be fused."""
    _check_count(members)
    policy = EnsemblePolicy([member.policy for member in members], fusion)
    return Teacher(policy, about([m.info for m in members], fusion, [identity.of_teacher(m) for m in members]))


def about(infos: Sequence[TeacherInfo], fusion: Fusion, digests: Sequence[str]) -> TeacherInfo:
    """What is known of an ensemble from its members; its identity is that of all of them, in their order."""
    digest = hashlib.sha256("/".join([fusion, *digests]).encode()).hexdigest()
    told = [{"path": i.path, "algorithm": i.algorithm, "sha256": d} for i, d in zip(infos, digests, strict=True)]
    bare = any(i.stated.get("trained_normalised") and "normaliser_sha256" not in i.stated for i in infos)
    facts: dict[str, object] = {"fusion": fusion, "members": told} | ({"trained_normalised": True} if bare else {})
    names = [i.path for i in infos]
    notes = [f"an ensemble of {len(infos)}, fused by {fusion}"]
    notes += [f"{name}: {note}" for name, i in zip(names, infos, strict=True) for note in i.notes]
    unread = tuple(f"{name}: {part}" for name, i in zip(names, infos, strict=True) for part in i.unread)
    algorithms = ", ".join(i.algorithm for i in infos)
    path = f"{PREFIX}{fusion}:{','.join(names)}"
    return TeacherInfo(path, "ensemble", printable(algorithms, 60), digest, facts, unread, tuple(notes))


def _check_count(members: Sequence[object]) -> None:
    if not 2 <= len(members) <= MAX_MEMBERS:
        raise InputError(f"an ensemble of {len(members)} was given. Allowed: 2 to {MAX_MEMBERS} teachers.")


# ---------------------------------------------------------------- playing


class EnsemblePolicy:
    """Members that answer together; each keeps its own memory, under its number."""

    def __init__(self, members: Sequence[Policy], fusion: Fusion) -> None:
        if fusion not in FUSIONS:
            raise InputError(f"fusion {printable(fusion)!r} is unknown. Allowed: {', '.join(FUSIONS)}.")
        self.members, self.fusion = tuple(members), fusion
        self.spec: Spec = self.members[0].spec
        for number, member in enumerate(self.members):
            _check_spaces(self.spec, member.spec, number)
        self.head = _common_head([m.head for m in self.members], self.spec, fusion)
        if fusion == "value":
            self._check_values()

    def initial_state(self, batch: int) -> State:
        return {f"{i}/{k}": v for i, m in enumerate(self.members) for k, v in m.initial_state(batch).items()}

    def __call__(self, obs: Observation, state: State, first: NDArray[np.bool_]) -> PolicyOutput:
        outputs, after = self._asked(obs, state, first)
        rows = [_converted(m.head, o.params, self.head) for m, o in zip(self.members, outputs, strict=True)]
        values = [v for m, o in zip(self.members, outputs, strict=True) if (v := _value(m.head, o)) is not None]
        stacked = np.stack(values) if len(values) == len(rows) else None
        if self.fusion == "mean":
            value = None if stacked is None else stacked.mean(axis=0).astype(np.float32)
            return PolicyOutput(pooled(self.head, np.stack(rows)), after, value)
        if self.fusion == "confidence":
            best = np.stack([entropy(self.head, row) for row in rows]).argmin(axis=0)
        else:
            if stacked is None:
                raise _no_value()
            best = stacked.argmax(axis=0)
        lanes = np.arange(len(first))
        chosen = None if stacked is None else stacked[best, lanes]
        return PolicyOutput(np.stack(rows)[best, lanes], after, chosen)

    def _asked(
        self, obs: Observation, state: State, first: NDArray[np.bool_]
    ) -> tuple[list[PolicyOutput], dict[str, NDArray[np.generic]]]:
        outputs, after = [], dict(state)
        for number, member in enumerate(self.members):
            prefix = f"{number}/"
            own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            outputs.append(member(obs, own, first))
            after |= {prefix + k: v for k, v in outputs[-1].state.items()}
        return outputs, after

    def _check_values(self) -> None:
        obs = modules.trial_batch(self.spec)
        fresh = np.ones(4, bool)
        for number, member in enumerate(self.members):
            if _value(member.head, member(obs, member.initial_state(4), fresh)) is None:
                raise _no_value(number)


def _no_value(number: int | None = None) -> InputError:
    which = "a member" if number is None else f"member {number + 1}"
    return InputError(
        f"{which} of the ensemble states no value of what it sees. Allowed for fusion by value: teachers with a critic or action values. Use mean or confidence."
    )


def _check_spaces(mine: Spec, theirs: Spec, number: int) -> None:
    a, b = stated.shape_of(mine.observation_space), stated.shape_of(theirs.observation_space)
    problems = stated.action_problems(theirs.action_space, mine.action_space) + ([f"{b} against {a}"] if a != b else [])
    if problems:
        raise InputError(
            f"member {number + 1} of the ensemble is for another task: {printable('; '.join(problems))}. Name the environment with --env, or take members of one task."
        )


def _common_head(heads: Sequence[Head], spec: Spec, fusion: Fusion) -> Head:
    """The head of the fused rows."""
    kinds = sorted({head.kind for head in heads})
    same = len(kinds) == 1
    if fusion == "confidence" and not (same and kinds[0] in _CERTAIN):
        raise InputError(
            f"the members speak as {', '.join(kinds)}. Allowed for fusion by confidence: one kind of {', '.join(_CERTAIN)}, which have an entropy. Use mean."
        )
    if same:
        return heads[0]
    if all(kind in _CONTINUOUS for kind in kinds):
        return spaces.head_for(spec.action_space, "deterministic")
    raise InputError(
        f"the members speak as {', '.join(kinds)}, which do not mix: action values are no logits. Allowed: one kind, or continuous ones."
    )


def _converted(head: Head, params: Floats, to: Head) -> Floats:
    """Rows of a member as rows of the fused head: the same, or the action that it would execute."""
    if head.kind == to.kind:
        return params
    return distributions.act(head, params).reshape(len(params), -1).astype(np.float32)


def _value(head: Head, output: PolicyOutput) -> Floats | None:
    """[B] what a member thinks the state is worth, None where it does not say."""
    if output.value is not None:
        return output.value
    return output.params.max(axis=1) if head.kind == "q" else None


# ---------------------------------------------------------------- closed forms


def pooled(head: Head, rows: NDArray[np.floating]) -> Floats:
    """[M, B, W] rows of M members -> [B, W], as the table at the top says; float64 inside."""
    wide: Any = rows.astype(np.float64)
    match head.kind:
        case "categorical" | "multicategorical":
            logs = [
                np.concatenate([distributions.log_softmax(g) for g in distributions.groups(head, r)], axis=1)
                for r in wide
            ]
            mean: Any = np.mean(logs, axis=0)
            return np.concatenate(
                [distributions.log_softmax(g) for g in distributions.groups(head, mean)], axis=1
            ).astype(np.float32)
        case "q":
            top = wide.max(axis=2, keepdims=True)
            return ((wide - top).mean(axis=0) + top.mean(axis=0)).astype(np.float32)
        case "gaussian" | "squashed":
            mean, log_std = np.split(wide, 2, axis=2)
            precision = np.exp(-2 * np.clip(log_std, *distributions.LOG_STD_RANGE))
            total = precision.mean(axis=0)
            centre = (precision * mean).mean(axis=0) / total
            return np.concatenate([centre, -0.5 * np.log(total)], axis=1).astype(np.float32)
    return wide.mean(axis=0).astype(np.float32)


def entropy(head: Head, rows: NDArray[np.floating]) -> NDArray[np.float64]:
    """[B] entropy in nats of rows [B, W]; of squashed rows before tanh."""
    wide: Any = rows.astype(np.float64)
    match head.kind:
        case "categorical" | "multicategorical":
            total = np.zeros(len(wide))
            for group in distributions.groups(head, wide):
                logs = distributions.log_softmax(group)
                total -= (np.exp(logs) * logs).sum(axis=1)
            return total
        case "bernoulli":
            on = distributions.sigmoid(wide)
            return (on * np.logaddexp(0, -wide) + (1 - on) * np.logaddexp(0, wide)).sum(axis=1)
        case "gaussian" | "squashed":
            log_std = np.clip(wide[:, sum(head.sizes) :], *distributions.LOG_STD_RANGE)
            return (log_std + 0.5 * np.log(2 * np.pi * np.e)).sum(axis=1)
    raise InputError(f"a {head.kind} head has no entropy. Allowed: {', '.join(_CERTAIN)}.")
