"""CCSG on MOFs of at most 400 atoms: as configs/ccsg_hmof100.py, pairs in blocks.

Command:  python -m launch.train --config=configs/ccsg_hmof400.py \
              --config.init_from=runs/cpcp_hmof400 --workdir=runs/ccsg_hmof400
Expected: not run by us. Memory and time against atoms: python -m benchmarks.scaling.
Variants: those of configs/ccsg_hmof100.py.
"""

from configs import ccsg_hmof100
from configs.cpcp_hmof400 import large


def get_config(arg: str = ""):
    return large(ccsg_hmof100.get_config(arg), arg)
