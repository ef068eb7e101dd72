"""Makes published_losses.json: what the authors' own functions say of fixed random rows. None of their code is kept here.

Copies of four repositories lie side by side in one folder, each at the commit below; only the named functions are taken
out of their files, with Python 3.11 and torch 2 in float64:

    github.com/megvii-research/mdistiller         a08d46f10d6102bd6e3f258ca5ac880b020ea259 (MIT)
    github.com/hunto/DIST_KD                      2418f18b1fedd7c2646a7b1b9a27d5c674c2170b (MIT)
    github.com/sunshangquan/logit-standardization-KD f6e5aa5172bad618e801163c3385322eea673754
    github.com/huggingface/trl                    f2cd57710ae345ea6428ae95363267fcf38a3dc8 (Apache-2.0)

    python tests/reference/published_losses.py FOLDER > tests/reference/published_losses.json
"""

import ast
import json
import sys
import textwrap
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

FOLDER = Path(sys.argv[1])


def taken(path, *names):
    """The functions and classes of a file by their names, wherever in it they stand."""
    text = (FOLDER / path).read_text()
    space = {"torch": torch, "nn": nn, "F": F}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in names:
            node.decorator_list = []
            exec(textwrap.dedent(ast.unparse(node)), space)
    return space


rng = np.random.default_rng(11)
given = {
    "teacher": rng.normal(size=(6, 5)) * 2,
    "student": rng.normal(size=(6, 5)),
    "feature": rng.normal(size=(6, 7)),
    "hidden": rng.normal(size=(6, 4)),
    "feature_map": rng.normal(size=(6, 3, 6, 6)),
    "hidden_map": rng.normal(size=(6, 2, 4, 4)),
}
given = {key: np.round(value, 4) for key, value in given.items()}
t = {key: torch.from_numpy(value) for key, value in given.items()}
MD, STANDARD = "mdistiller/mdistiller/distillers", "logit-standardization-KD/mdistiller/distillers"
dkd = taken(f"{MD}/DKD.py", "dkd_loss", "_get_gt_mask", "_get_other_mask", "cat_mask")["dkd_loss"]
attention = taken(f"{MD}/AT.py", "single_stage_at_loss")["single_stage_at_loss"]
similarity = taken(f"{MD}/SP.py", "similarity_loss")["similarity_loss"]
relational = taken(f"{MD}/RKD.py", "rkd_loss", "_pdist")["rkd_loss"]
standardised = taken(f"{STANDARD}/KD.py", "kd_loss", "normalize")["kd_loss"]
dist = taken(
    "DIST_KD/segmentation/losses/dist_kd.py",
    "DIST", "inter_class_relation", "intra_class_relation", "pearson_correlation", "cosine_similarity",
)["DIST"]  # fmt: skip
jsd = taken("trl/trl/experimental/gkd/gkd_trainer.py", "generalized_jsd_loss")["generalized_jsd_loss"]

z_t, z_s = t["teacher"], t["student"]
found = {
    "dkd": {f"{b:g},{tau:g}": dkd(z_s, z_t, z_t.argmax(1), 1.0, b, tau) for b, tau in ((1, 1), (8, 4), (0, 2))},
    "attention": attention(t["hidden_map"], t["feature_map"], 2),
    "similarity": similarity(t["hidden"], t["feature"]),
    "relational": {
        f"{a:g},{b:g}": relational(t["hidden"], t["feature"], False, 1e-12, a, b) for a, b in ((25, 50), (25, 0))
    },
    "standardised": standardised(z_s, z_t, 2.0, True),
    "dist": dist(1.0, 1.0)(z_s, z_t),
    "js": {
        f"{b:g}": jsd(z_s[:, None], z_t[:, None], beta=b, reduction="none").sum(-1).reshape(-1)
        for b in (0, 0.1, 0.5, 0.9, 1)
    },
}


def plain(value):
    return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else value.tolist()


print(json.dumps({"given": {k: v.tolist() for k, v in given.items()}, "found": plain(found)}))
