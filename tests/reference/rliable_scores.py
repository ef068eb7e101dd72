"""Makes rliable_scores.json: rliable's aggregates, profiles and stratified bootstrap intervals of two invented suites.

python -m venv rliable && rliable/bin/pip install rliable==1.2.0 "pandas<3"
rliable/bin/python tests/reference/rliable_scores.py > tests/reference/rliable_scores.json
"""

import json

import numpy as np
from rliable import library, metrics

rng = np.random.default_rng(11)
x = np.round(0.9 + 0.25 * rng.standard_normal((6, 4)) + [0.0, 0.1, -0.2, 0.05], 2)  # [runs, tasks]
y = np.round(0.8 + 0.30 * rng.standard_normal((5, 4)) + [0.0, 0.1, -0.2, 0.05], 2)
y[:3, 1] = x[:3, 1]  # ties count half
taus = np.linspace(0.0, 1.5, 16)
AGGREGATES = {
    "mean": metrics.aggregate_mean,
    "median": metrics.aggregate_median,
    "iqm": metrics.aggregate_iqm,
    "optimality_gap": metrics.aggregate_optimality_gap,
}


def all_of(scores):
    return np.array([aggregate(scores) for aggregate in AGGREGATES.values()])


np.random.seed(0)
points, intervals = library.get_interval_estimates({"x": x}, all_of, reps=50_000)
improvement, improvement_interval = library.get_interval_estimates(
    {"x,y": (x, y)}, metrics.probability_of_improvement, reps=10_000
)
profiles, profile_intervals = library.create_performance_profile({"x": x}, taus, reps=10_000)
print(
    json.dumps(
        {
            "x": x.tolist(),
            "y": y.tolist(),
            "taus": taus.tolist(),
            "points": dict(zip(AGGREGATES, points["x"].tolist(), strict=True)),
            "intervals": {name: intervals["x"][:, i].tolist() for i, name in enumerate(AGGREGATES)},
            "improvement": float(np.ravel(improvement["x,y"])[0]),
            "improvement_interval": np.ravel(improvement_interval["x,y"]).tolist(),
            "profile": profiles["x"].tolist(),
            "profile_interval": profile_intervals["x"].tolist(),
        }
    )
)
