"""Ablation, table 3 of the paper, second row: the encoder learns with the generator, from nothing.

Command:  python -m launch.train --config=configs/ablation_scratch.py \
              --workdir=runs/ablation_scratch
Expected: match rate 48.75 / 63.75 / 72.5 / 77.5 % at 1 / 3 / 5 / 10, RMSE .4106 / .4023 / .4076 /
          .3990 (paper, hMOF-100, 80 patterns, 20 candidates). Not run by us at this size.
Variants: those of configs/ablation_frozen.py.
"""

from configs import ablation_unfrozen


def get_config(arg: str = ""):
    config = ablation_unfrozen.get_config(arg)
    config.init_from = ""
    return config
