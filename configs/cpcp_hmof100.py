"""CPCP as published: hMOF-100, 400 epochs, sizes and optimiser of the authors' released scripts.

Data:     put the authors' LMDB files into a folder (Zenodo 13629658), then
          python -m launch.prepare --source=FOLDER --split=train --out=data/hmof100_train.npz
          and likewise for val.
Command:  python -m launch.pretrain --config=configs/cpcp_hmof100.py --workdir=runs/cpcp_hmof100
Expected: retrieval among 9,081 test crystals 42.5 / 74.4 / 86.8 / 96.3 % at 1 / 3 / 5 / 10 (paper,
          table 1; 4 V100). Not run by us at this size.
Variant:  ``:smoke``.
"""

from configs import common

ENCODER = {
    "width": 512,
    "ffn": 2048,
    "heads": 64,
    "layers": 8,
    "dropout": 0.1,
    "position": "table",
    "room": 0.0,  # peaks per pattern that a training batch has room for; 0: for all
}
NETWORK = {"width": 512, "layers": 6, "num_freqs": 128}


def published(task: str):
    """Return data, patterns and schedule that both published recipes share."""
    config = common.base(task)
    config.data.train, config.data.eval = "data/hmof100_train.npz", "data/hmof100_val.npz"
    config.data.num_atoms_buckets = (32, 48, 64, 80, 100)
    config.data.update({"budget_pairs": 640000, "max_batch": 64, "min_batch": 64})
    config.pattern.source, config.pattern.form = "own", "grid"
    config.train.num_epochs = 400
    config.train.ema_decay = 0.0
    config.train.optim.schedule = "reference"
    config.train.optim.warmup_epochs = 20
    config.train.optim.name = "adam"
    return config


def smoke(config):
    """Shrink a published recipe; the textbook crystals bring no patterns of their own."""
    common.smoke(config)
    config.pattern.source = "lines"
    config.train.optim.warmup_epochs = 1
    return config


def get_config(arg: str = ""):
    config = published("cpcp")
    config.model = {"encoder": dict(ENCODER), "network": dict(NETWORK)}
    config.train.optim.update(
        {"learning_rate": 5e-4, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 1e-4}
    )
    if arg not in ("", "smoke"):
        raise ValueError(f"unknown variant {arg!r} of configs/cpcp_hmof100.py; known: smoke")
    return smoke(config) if arg == "smoke" else config
