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
    # Near the end of the path, where an atom is within a bond length of its place; see flow.LATE.
    config.flow.time_sampling = "late"
    config.sampling.update({"num_steps": 50, "coord_speed": 0.0, "late": 2.0})
    if "accelerator" in arg.split(","):
        config.data.num_atoms_buckets = (64, 80, 100)
        config.data.update({"budget_pairs": 1280000, "max_batch": 320})
        config.flow.num_sweeps = 1
        return config
    config.data.update({"budget_pairs": 160000, "max_batch": 64, "min_batch": 8})
    config.train.num_epochs = 30 if "cpu" in arg.split(",") else 400
    return config
