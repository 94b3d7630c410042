"""CPCP on metal-organic frameworks of at most 100 atoms (QMOF), patterns as in the paper.

Data:     python -m launch.prepare --source=QMOF.npz --split=train --out=data/qmof_train.npz \
          --max_atoms=100 --inv_d_max=0.36     (likewise val and test; 30 degrees are 0.336)
Command:  python -m launch.pretrain --config=configs/cpcp_qmof.py --workdir=runs/cpcp_qmof
Variants: ``:cpu`` (width 128), ``:smoke``, ``:graph`` (the crystal tower is the paper's CSPNet, in
          place of the one that reads reflections); several joined by commas, as ``:cpu,graph``.
"""

from configs import common, cpcp

PAPER_RANGE = {"start": (3.0, 3.0), "end": (30.0, 30.0), "num_bins": 1351}
"""Cu K-alpha, every 0.02 degree, without faults of an instrument."""


def frameworks(config):
    """Point a recipe of ours at the frameworks: data, sizes, patterns."""
    config.data.train, config.data.eval = "data/qmof_train.npz", "data/qmof_val.npz"
    config.data.num_eval = 512
    config.data.num_atoms_buckets = (32, 48, 64, 80, 100)
    config.pattern.effects = PAPER_RANGE
    return config


def get_config(arg: str = ""):
    asked = common.variants(arg, "cpcp_qmof", "cpu", "smoke", "graph")
    ours = ["reflections"] if "graph" not in asked else []
    config = cpcp.get_config(",".join([*sorted(asked - {"graph"}), *ours]))
    if "graph" not in asked:
        config.model.network.num_reflections = 128
    if "smoke" in asked:
        return config
    config = frameworks(config)
    config.data.update({"budget_pairs": 640000, "max_batch": 64, "min_batch": 64})
    config.train.num_epochs = 40 if "cpu" in asked else 400
    return config
