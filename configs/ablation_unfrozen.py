"""Ablation, table 3 of the paper, third row: the pretrained encoder goes on learning.

Command:  python -m launch.train --config=configs/ablation_unfrozen.py \
              --workdir=runs/ablation_unfrozen     (after configs/cpcp_hmof100.py)
Expected: match rate 63.75 / 77.5 / 85.0 / 92.5 % at 1 / 3 / 5 / 10, RMSE .4514 / .4300 / .4279 /
          .4032 (paper, hMOF-100, 80 patterns, 20 candidates). Not run by us at this size.
Variants: those of configs/ablation_frozen.py.
"""

from configs import ablation_frozen


def get_config(arg: str = ""):
    config = ablation_frozen.get_config(arg)
    config.train.freeze = ()
    return config
