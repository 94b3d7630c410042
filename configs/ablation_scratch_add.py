"""Ablation, table 3 of the paper, first row: from nothing, the pattern as one more node ("add").

Command:  python -m launch.train --config=configs/ablation_scratch_add.py \
              --workdir=runs/ablation_scratch_add
Expected: match rate 23.75 / 35.0 / 43.75 / 55.0 % at 1 / 3 / 5 / 10, RMSE .5274 / .5182 / .5017 /
          .4969 (paper, hMOF-100, 80 patterns, 20 candidates). Not run by us at this size, and not
          to be compared blindly: the node has edges to all atoms here, which it lacks in the
          authors' public code.
Variants: those of configs/ablation_frozen.py.
"""

from configs import ablation_scratch


def get_config(arg: str = ""):
    config = ablation_scratch.get_config(arg)
    config.model.fusion = "add"
    return config
