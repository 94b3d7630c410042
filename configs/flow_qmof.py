"""CCSG by flow matching on metal-organic frameworks of at most 100 atoms (QMOF).

Data:     see configs/cpcp_qmof.py
Command:  python -m launch.train --config=configs/flow_qmof.py --config.init_from=runs/cpcp_qmof
Variants: those of configs/flow.py; several joined by commas, as ``:cpu,transformer``.
"""

from configs import flow
from configs.cpcp_qmof import frameworks


def get_config(arg: str = ""):
    config = flow.get_config(arg)
    if "smoke" in arg.split(","):
        return config
    config = frameworks(config)
    config.data.update({"budget_pairs": 160000, "max_batch": 64, "min_batch": 8})
    config.train.num_epochs = 30 if "cpu" in arg.split(",") else 400
    return config
