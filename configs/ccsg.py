"""CCSG by the paper's diffusion on inorganic cells of at most 20 atoms, encoder frozen.

Command:  python -m launch.train --config=configs/ccsg.py --config.init_from=runs/cpcp
Expected: no run at this size yet; the bundled generator comes from configs/flow.py.
Variants: ``:cpu`` (width 128; takes the encoder of configs/cpcp.py:cpu), ``:smoke``,
          ``:transformer``; several joined by commas.
"""

from configs import common, flow


def get_config(arg: str = ""):
    config = flow.get_config(arg)
    config.task = "ccsg"
    del config.flow, config.sampling
    config.model.network.update({"cross_attention": 0})
    config.diffusion = {"num_steps": 20 if "smoke" in arg.split(",") else 1000}
    config.train.freeze = common.FROZEN_ENCODER
    return config
