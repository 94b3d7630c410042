"""CPCP: contrastive pretraining of the PXRD encoder against crystals (inorganic cells <= 20 atoms).

Command:  python -m launch.pretrain --config=configs/cpcp.py --workdir=runs/cpcp
Variants: ``:cpu`` (width 128, the size of the bundled weights), ``:smoke``.
"""

from configs import common


def get_config(arg: str = ""):
    config = common.base("cpcp")
    config.model = {
        "encoder": {
            "width": 512,
            "ffn": 2048,
            "heads": 16,
            "layers": 8,
            "dropout": 0.1,
            "position": "fourier",
        },
        "network": {"width": 512, "layers": 6, "num_freqs": 128},
        "projection": 512,
        "lattice_form": "log_metric",
        "init_log_scale": 3.0,
    }
    # Negatives come from the batch, so it is large for every size of cell.
    config.data.update({"budget_pairs": 25600, "max_batch": 128})
    config.train.optim.learning_rate = 5e-4
    if arg in ("cpu", "smoke"):
        config.model.encoder.update(common.CPU_ENCODER)
        config.model.network.update({"width": 128, "layers": 4, "num_freqs": 32})
        config.model.projection = 128
        config.train.optim.learning_rate = 1e-3
        config.train.num_epochs = 6
    if arg == "smoke":
        common.smoke(config)
    elif arg not in ("", "cpu"):
        raise ValueError(f"unknown variant {arg!r} of configs/cpcp.py; known: cpu, smoke")
    return config
