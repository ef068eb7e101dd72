"""The least and the largest value of every number in a recipe."""

from __future__ import annotations

TIMED_ROUNDS = 2  # rounds that are timed before a time limit becomes a number of rounds

RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 1), "env_steps": (1, 10**10), "seconds": (0.1, 10**7), "seconds_rounds": (TIMED_ROUNDS, 10**9), "threads": (1, 256), "gamma": (0, 1), "history": (1, 1024), "noise": (0, 100),
    "task.step_timeout": (0.1, 86400), "verify.episodes": (2, 100_000), "verify.random_episodes": (2, 100_000),
    "collect.slots": (1, 4096), "collect.steps": (1, 10**8), "collect.teacher_rounds": (0, 10**6), "collect.beta_rounds": (1, 10**6),
    "collect.trust": (0, 100), "collect.trust_share": (0, 1), "collect.random_share": (0, 1), "collect.lmbda": (0, 1), "collect.beta": (0, 1),
    "imitate.priority": (0, 2), "imitate.shift": (0, 64), "imitate.weight_decay": (0, 10), "imitate.dropout": (0, 0.95), "imitate.adversarial": (0, 100),
    "imitate.adversarial_radius": (1e-6, 10), "imitate.adversarial_steps": (1, 100), "imitate.average": (0, 0.99999),
    "imitate.validation_share": (0, 0.5), "imitate.patience": (1, 10**6), "imitate.stop_gain": (0, 1),
    "imitate.assistant": (0, 100), "imitate.population_every": (1, 10**6), "imitate.population_spread": (1, 1000),
    "imitate.rounds": (1, 10**6), "imitate.gradient_steps": (1, 10**7), "imitate.batch": (1, 10**6),
    "imitate.learning_rate": (1e-8, 10), "imitate.final_learning_rate": (0, 10), "imitate.hard_weight": (0, 1), "imitate.task_weight": (0, 1e6), "imitate.kd_weight": (0, 1),
    "imitate.beta": (0, 1), "imitate.gap_power": (0, 4), "imitate.dkd_beta": (0, 1000),
    "imitate.temperature": (1e-6, 1e6), "imitate.entropy_target": (0.001, 0.999), "imitate.gradient_clip": (1e-6, 1e6),
    "imitate.sequence": (1, 4096), "imitate.burn_in": (0, 4095), "imitate.bellman_steps": (1, 10**4), "imitate.reward_scale": (1e-9, 1e9), "race.episodes": (1, 10**5), "race.final_episodes": (1, 10**5),
    "grow.samples": (1, 10**8), "grow.power": (0, 4), "grow.keep": (1, 10**5), "grow.final_episodes": (1, 10**5),
    "critic.gamma": (0, 0.99999), "critic.trace": (0, 1), "critic.members": (1, 64), "critic.features": (1, 10**4), "critic.action_features": (1, 10**4), "critic.ridge": (1e-12, 1e3), "critic.caution": (0, 100),
    "critic.rows": (16, 10**8), "critic.draws": (1, 1024), "critic.episodes": (2, 10**5),
    "polish.max_parameters": (0, 10**6), "polish.generations": (1, 10**5), "polish.pairs": (1, 10**5), "polish.episodes": (1, 10**5),
    "polish.sigma": (1e-6, 10), "polish.learning_rate": (1e-6, 10), "polish.validate_every": (1, 10**5), "polish.validation_episodes": (1, 10**5), "polish.horizon": (1, 10**6),
    "compression.gradient_steps": (1, 10**7), "compression.learning_rate": (1e-8, 10),
    "prove.retain": (0.01, 1.5), "prove.alpha": (1e-6, 0.5), "prove.max_episodes": (1, 10**7), "prove.chunk": (1, 10**5),
    "prove.bound_episodes": (10, 10**6), "prove.bound_steps": (1000, 10**10), "export.golden_steps": (8, 10**5), "stress.episodes": (0, 10**5), "report.gallery_episodes": (1, 256), "report.gallery_frames": (1, 64),
}  # fmt: skip
