"""Ablation, table 3 of the paper, last row: all parts on (pretrained, frozen, "cat" fusion).

The other rows each take one thing more away: ablation_unfrozen, ablation_scratch,
ablation_scratch_add. All of them: python -m benchmarks.ablations.

Command:  python -m launch.train --config=configs/ablation_frozen.py \
              --workdir=runs/ablation_frozen     (after configs/cpcp_hmof100.py)
Expected: match rate 58.75 / 86.25 / 87.75 / 95.0 % at 1 / 3 / 5 / 10, RMSE .4580 / .4254 / .4053 /
          .3985 (paper, hMOF-100, 80 patterns, 20 candidates). Not run by us at this size.
Variants: ``:cpu`` (configs/ccsg.py:cpu, the encoder of configs/cpcp.py:cpu in runs/cpcp),
          ``:smoke`` (the encoder starts from nothing unless --config.init_from is given).
"""

from configs import ccsg, ccsg_hmof100, common


def get_config(arg: str = ""):
    asked = common.variants(arg, "ablation_frozen", "cpu", "smoke")
    config = ccsg.get_config(arg) if asked else ccsg_hmof100.get_config()
    config.model.fusion = "cat"
    config.init_from = "runs/cpcp" if asked else "runs/cpcp_hmof100"
    if "smoke" in asked:
        config.init_from = ""
    return config
