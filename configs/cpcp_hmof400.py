"""CPCP on MOFs of at most 400 atoms: as configs/cpcp_hmof100.py, pairs in blocks.

Data:     as for configs/cpcp_hmof100.py, from the authors' hMOF-400 files.
Command:  python -m launch.pretrain --config=configs/cpcp_hmof400.py --workdir=runs/cpcp_hmof400
Expected: not run by us. Memory and time against atoms: python -m benchmarks.scaling.
Variant:  ``:smoke``.
"""

from configs import cpcp_hmof100


def large(config, arg: str):
    """Turn a recipe for 100 atoms into one for 400."""
    if arg == "smoke":
        config.model.network.chunk = 1
        return config
    config.data.train, config.data.eval = "data/hmof400_train.npz", "data/hmof400_val.npz"
    config.data.num_atoms_buckets = (64, 100, 150, 200, 300, 400)
    config.data.update({"max_batch": 64, "min_batch": 4})  # 640,000 pairs: 4 cells of 400 atoms
    config.model.network.chunk = 16
    return config


def get_config(arg: str = ""):
    return large(cpcp_hmof100.get_config(arg), arg)
