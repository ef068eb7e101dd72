"""Action values of a teacher that states none, fitted by least squares to what a run collected anyway.

Q(s, a) = V(s) + f(s, a) - E_{a' ~ pi_T} f(s, a'): the advantage is f less its mean under the teacher, V = E_{pi_T} Q by
construction. V and f are linear in random features (one hidden layer of SiLU units whose weights stay as drawn, Rahimi &
Recht 2008); the mean of a small ensemble of drawings counts. Being linear, the fixed point of fitted Q evaluation needs
no iteration and no learning rate: it solves

    sum_t z_t [r_t + gamma V(s_{t+1}) - Q(s_t, a_t)] = 0,    z_t = phi(s_t, a_t) + gamma lambda c_t z_{t-1}

which is LSTD-Q (Lagoudakis & Parr 2003) with the traces of Retrace (Munos et al. 2016, arXiv:1606.02647): c = 1 where the
teacher drew the action, pi_T(a|s) where anybody else did. So whoever drove, V is that of the teacher. Long traces make the
same solution's f noisy; it is fitted anew, by ridge regression of the surprise r + gamma V(s') - V(s) on f and on a
function of the state, which takes up the error of V there (Robinson 1988). What is learned about an action needs rows where
it was taken. A fit begins from nothing: it is a function of the transitions and a random stream.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from limbeck.contracts import Array, Floats
from limbeck.settings import CriticSettings

Reals = NDArray[np.float64]
FLAT = 1e-6  # a spread below it is none
JITTER = 1e-5  # per transition: keeps a product of float32 features positive
SCAN = 8192  # rows whose features are in memory at once
LINEAR = 64  # numbers that are features themselves, beside the random ones
WIDEST = 768  # numbers that f may have, all actions together
BEND = 1.5  # spread of what goes into a hidden unit: below it features are nearly linear


@dataclass(frozen=True)
class Steps:
    """Transitions lane by lane in time order. Discrete: A actions; continuous: n numbers in half ranges of the action."""

    inputs: Floats  # [N, F] what of the state is seen
    taken: Array  # [N] int64 indices, or [N, n] float32
    teacher: Floats  # [N, A] pi_T(a|s), or [N, S, n] draws from pi_T(.|s): the greedy action alone where S = 1
    reward: Reals  # [N]
    goes_on: NDArray[np.bool_]  # [N] the next row is what came of the step
    ended: NDArray[np.bool_]  # [N] the episode ended by its own rules: nothing follows
    trace: Reals  # [N] c, 0 to 1: how far an estimate may reach through the row's action

    @property
    def known(self) -> NDArray[np.bool_]:
        """[N] rows whose outcome is known; a time limit or the end of a lane hides it."""
        return self.goes_on | self.ended

    @property
    def continuous(self) -> bool:
        return self.taken.ndim == 2


@dataclass(frozen=True)
class Fitted:
    """Q in units of reward, from inputs that are brought to (inputs - centre) / spread."""

    arrays: Mapping[
        str, torch.Tensor
    ]  # "centre", "spread" [F]; per member "state" [M, F + 1, H], "action", "solution" ...
    residual: float = math.nan  # root mean square of r + gamma V(s') - Q(s, a), in units of reward

    @property
    def members(self) -> int:
        return len(self.arrays["solution"])

    def value(self, inputs: torch.Tensor) -> torch.Tensor:
        """[B, F] -> [B] V, in float64."""
        seen, parts = self._seen(inputs), []
        for k in range(self.members):
            phi = _state_features(self.arrays, k, seen)
            parts.append(phi.double() @ self.arrays["solution"][k, : phi.shape[1]])
        return torch.stack(parts).mean(0)

    def advantage(self, inputs: torch.Tensor, policy: torch.Tensor, caution: float = 0.0) -> torch.Tensor:
        """[B, F] and pi_T [B, A] -> [B, A] Q - V, in float64, less `caution` standard errors.

        Who follows the largest of many estimates follows their errors too. The standard error of an advantage is that of
        ridge regression, residual * |(Psi' Psi + ridge)^-1/2 psi|: 0 for the teacher's own action where it plays greedy,
        large for actions that were hardly ever taken nearby."""
        seen, parts = self._seen(inputs), []
        contrast = torch.eye(policy.shape[1]) - policy[:, None]  # [B, A, A]
        for k in range(self.members):
            psi = _choice_features(self.arrays, k, seen)
            doubt = torch.zeros(())
            if caution:
                root = self.arrays["root"][k].reshape(-1, policy.shape[1], psi.shape[1])
                seen_by = torch.einsum("dah,bh->bda", root, psi)  # [B, D, A]
                doubt = caution * torch.einsum("bda,bca->bcd", seen_by, contrast).norm(dim=-1).double()
            own = self.arrays["solution"][k, -policy.shape[1] * psi.shape[1] :].reshape(policy.shape[1], -1)
            f = psi.double() @ own.T
            parts.append(f - (policy.double() * f).sum(-1, keepdim=True) - doubt)
        return torch.stack(parts).mean(0)

    def preference(self, inputs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """[B, F] and actions [B, n] in half ranges -> [B] f(s, a): Q up to a constant per state, differentiable in a."""
        seen, parts = self._seen(inputs), []
        for k in range(self.members):
            psi = _action_features(self.arrays, k, seen, actions)
            parts.append(psi.double() @ self.arrays["solution"][k, -psi.shape[-1] :])
        return torch.stack(parts).mean(0)

    def _seen(self, inputs: torch.Tensor) -> torch.Tensor:
        return (inputs - self.arrays["centre"]) / self.arrays["spread"]


def fit(steps: Steps, settings: CriticSettings, rng: np.random.Generator) -> Fitted:
    """Q^{pi_T} from transitions; the same for the same stream. Needs a row whose outcome is known."""
    wide = steps.inputs.astype(np.float64)
    spread = wide.std(axis=0)
    arrays = {
        "centre": torch.from_numpy(wide.mean(axis=0).astype(np.float32)),
        "spread": torch.from_numpy(np.where(spread > FLAT, spread, 1.0).astype(np.float32)),
    }
    drawn = [_drawn(steps, settings, rng) for _ in range(settings.members)]
    arrays |= {name: torch.stack([one[name] for one in drawn]) for name in drawn[0]}
    seen = Fitted(arrays)._seen(torch.from_numpy(steps.inputs))
    solutions, roots, residuals = zip(
        *(_solved(arrays, k, seen, steps, settings) for k in range(settings.members)), strict=True
    )
    return Fitted({**arrays, "solution": torch.stack(solutions), "root": torch.stack(roots)}, float(np.mean(residuals)))


# ---------------------------------------------------------------- features


def _drawn(steps: Steps, settings: CriticSettings, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """Weights of the hidden units of one member: of V's, and of f's, which for continuous actions see the action too."""
    width = steps.inputs.shape[1]
    found = {"state": _units(width, settings.features, rng)}
    if steps.continuous:
        found["action"] = _units(width + steps.taken.shape[1], settings.features, rng)
    else:
        room = WIDEST // steps.teacher.shape[1] - 1 - (width if width <= LINEAR else 0)
        found["choice"] = _units(width, max(1, min(settings.action_features, room)), rng)
    return found


def _units(inputs: int, many: int, rng: np.random.Generator) -> torch.Tensor:
    """[inputs + 1, many] weights and, last, biases."""
    weights = rng.standard_normal((inputs, many)) * (BEND / math.sqrt(inputs))
    return torch.from_numpy(np.vstack([weights, rng.standard_normal((1, many))]).astype(np.float32))


def _hidden(units: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    return functional.silu(inputs @ units[:-1] + units[-1])


def _plain(seen: torch.Tensor) -> list[torch.Tensor]:
    """The constant, and the inputs themselves where they are few."""
    return [seen.new_ones(*seen.shape[:-1], 1), *([seen] if seen.shape[-1] <= LINEAR else [])]


def _state_features(arrays: Mapping[str, torch.Tensor], k: int, seen: torch.Tensor) -> torch.Tensor:
    return torch.cat([*_plain(seen), _hidden(arrays["state"][k], seen)], -1)


def _choice_features(arrays: Mapping[str, torch.Tensor], k: int, seen: torch.Tensor) -> torch.Tensor:
    return torch.cat([*_plain(seen), _hidden(arrays["choice"][k], seen)], -1)


def _action_features(
    arrays: Mapping[str, torch.Tensor], k: int, seen: torch.Tensor, actions: torch.Tensor
) -> torch.Tensor:
    """[B, F] and [B, n] or [B, S, n] -> [B, ..., H]: the action, its square, and hidden units of both."""
    if actions.ndim == 3:
        seen = seen[:, None].expand(*actions.shape[:2], seen.shape[-1])
    hidden = _hidden(arrays["action"][k], torch.cat([seen, actions], -1))
    return torch.cat([actions, actions**2, hidden], -1)


def _features(
    arrays: Mapping[str, torch.Tensor], k: int, seen: torch.Tensor, steps: Steps, rows: slice
) -> torch.Tensor:
    """[B, D] phi(s, a): those of V, then those of f less their mean under the teacher."""
    part, taken = seen[rows], torch.from_numpy(steps.taken[rows])
    teacher = torch.from_numpy(steps.teacher[rows])
    state = _state_features(arrays, k, part)
    if steps.continuous:
        apart = _action_features(arrays, k, part, taken) - _action_features(arrays, k, part, teacher).mean(1)
    else:
        share = functional.one_hot(taken, teacher.shape[1]).to(teacher.dtype) - teacher  # [B, A]
        apart = (share[:, :, None] * _choice_features(arrays, k, part)[:, None]).flatten(1)
    return torch.cat([state, apart], -1)


# ---------------------------------------------------------------- the fixed point


def _solved(
    arrays: Mapping[str, torch.Tensor], k: int, seen: torch.Tensor, steps: Steps, settings: CriticSettings
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """One member's weights [D], a root of the covariance of those of f, and its residual."""
    known, reward = torch.from_numpy(steps.known), torch.from_numpy(steps.reward).clone()  # aligned, as products need
    phis, nexts, products, carried = [], [], [], None
    for begin in range(0, len(seen), SCAN):
        rows = slice(begin, begin + SCAN)
        phi = _features(arrays, k, seen, steps, rows) * known[rows, None]
        following = _state_features(arrays, k, seen[begin + 1 : begin + SCAN + 1])  # f has mean 0 there
        width = following.shape[1]
        after = phi.new_zeros(len(phi), width)
        after[: len(following)] = following * torch.from_numpy(steps.goes_on[rows])[: len(following), None]
        difference = torch.cat([phi[:, :width] - settings.gamma * after, phi[:, width:]], 1)
        traces, carried = _traced(phi.numpy(), _onward(steps, settings, rows), carried)
        z = torch.from_numpy(traces) * known[rows, None]
        products.append(((z.T @ difference).double(), z.double().T @ reward[rows], (phi.T @ phi).double()))
        phis.append(phi)
        nexts.append(after)
    matrix, right, gram = (torch.stack(part).sum(0) for part in zip(*products, strict=True))
    ridge = torch.full((len(right),), settings.ridge * float(known.sum()), dtype=torch.float64)
    ridge[0] = 0.0  # the constant
    solution = torch.linalg.solve(matrix + torch.diag(ridge), right)
    of_state = solution[:width]
    surprise = reward + torch.cat(
        [settings.gamma * (after.double() @ of_state) - phi[:, :width].double() @ of_state
         for phi, after in zip(phis, nexts, strict=True)]
    )  # fmt: skip
    lower = torch.linalg.cholesky(gram + torch.diag(ridge + JITTER * float(known.sum())))
    parts = zip(phis, range(0, len(seen), SCAN), strict=True)
    projected = torch.stack([phi.double().T @ surprise[i : i + SCAN] for phi, i in parts]).sum(0)
    explained = torch.cholesky_solve(projected[:, None], lower)[:, 0]
    errors = (surprise - torch.cat([phi.double() @ explained for phi in phis]))[known]
    residual = float((errors**2).mean().sqrt())
    root = torch.linalg.solve_triangular(lower, torch.eye(len(gram), dtype=torch.float64), upper=False)[:, width:]
    return torch.cat([of_state, explained[width:]]), (residual * root[width:]).float(), residual


def _onward(steps: Steps, settings: CriticSettings, rows: slice) -> Reals:
    """[B] gamma lambda c_t, 0 where the row before did not lead here."""
    led = np.append(False, steps.goes_on[:-1])
    return np.where(led, settings.gamma * settings.trace * steps.trace, 0.0)[rows]


def _traced(phi: Floats, onward: Reals, carried: Floats | None) -> tuple[Floats, Floats]:
    """z_t = phi_t + onward_t z_{t-1}, and the last z for the rows that follow.

    >>> _traced(np.ones((3, 1), np.float32), np.array([0.0, 0.5, 0.5]), None)[0].ravel().tolist()
    [1.0, 1.5, 1.75]
    """
    z = phi.copy()
    for t, share in enumerate(onward.tolist()):
        if share and t:
            z[t] += np.float32(share) * z[t - 1]
        elif share and carried is not None:
            z[0] += np.float32(share) * carried
    return z, z[-1].copy()
