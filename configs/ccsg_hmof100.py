"""CCSG as published: hMOF-100, frozen PXRD encoder from CPCP, "cat" fusion, 1,000 diffusion steps.

Data:     as for configs/cpcp_hmof100.py, whose run comes first.
Command:  python -m launch.train --config=configs/ccsg_hmof100.py \
              --config.init_from=runs/cpcp_hmof100 --workdir=runs/ccsg_hmof100
Expected: 80 test patterns, 20 candidates: match rate 58.75 / 86.25 / 87.5 / 95.0 % at 1 / 3 / 5 /
          10, RMSE .4580 / .4254 / .4053 / .3985 (paper, table 2; 4 V100). Not run by us yet.
Variants: ``:add`` (the pattern as one more node), ``:unfrozen``, ``:smoke``.
"""

from configs import common
from configs.cpcp_hmof100 import ENCODER, NETWORK, published, smoke


def get_config(arg: str = ""):
    config = published("ccsg")
    config.model = {
        "encoder": dict(ENCODER),
        "network": dict(NETWORK),
        "time_dim": 256,
        "fusion": "add" if arg == "add" else "cat",
    }
    config.diffusion = {"num_steps": 1000}
    config.train.optim.learning_rate = 1e-3
    config.train.optim.betas = (0.9, 0.999)
    config.train.freeze = () if arg == "unfrozen" else common.FROZEN_ENCODER
    if arg not in ("", "add", "unfrozen", "smoke"):
        raise ValueError(
            f"unknown variant {arg!r} of configs/ccsg_hmof100.py; known: add, unfrozen, smoke"
        )
    return smoke(config) if arg == "smoke" else config
