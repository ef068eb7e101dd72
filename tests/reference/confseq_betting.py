"""Makes confseq_betting.json: wealth of confseq's betting martingale (MIT licence) on a fixed sequence.

The package's compiled part is not needed; from a copy of github.com/gostevehoward/confseq at commit
70b1ef30aef08ad459815ea87fc25248f8b15178, with Python 3.11, numpy 1.26.4, scipy 1.15.3, matplotlib and multiprocess:

    PYTHONPATH=confseq/src python tests/reference/confseq_betting.py > tests/reference/confseq_betting.json
"""

import json

import numpy as np
from confseq.betting import betting_mart
from confseq.predmix import lambda_predmix_eb

BOUND, CEILING, CAP = 100.0, 150.0, 0.95  # D in [-BOUND, CEILING], mapped to x in [0, 1] with null mean m

rng = np.random.default_rng(7)
d = np.round(np.clip(12 + 30 * rng.standard_normal(400), -90, 140), 3)
d[[50, 120]] = [-95.25, -100.0]
width, m = BOUND + CEILING, BOUND / (BOUND + CEILING)
x = (d + BOUND) / width
predmix = np.minimum(lambda_predmix_eb(x, alpha=0.05), CAP / m)
capital = betting_mart(x, m, alpha=0.05, theta=1, trunc_scale=CAP)
largest = betting_mart(
    x, m, alpha=0.05, theta=1, trunc_scale=CAP, lambdas_fn_positive=lambda x, m: np.full(len(x), 1e9)
)
values = {"lambdas": predmix / width, "differences": d, "capital": capital, "capital_at_the_cap": largest}
print(json.dumps({"bound": BOUND, "cap": CAP} | {k: v.tolist() for k, v in values.items()}))
