"""CPCP: contrastive pretraining of the PXRD encoder against crystals (inorganic cells <= 20 atoms).

Command:  python -m launch.pretrain --config=configs/cpcp.py --workdir=runs/cpcp
Variants: ``:cpu`` (width 128, the size of the bundled weights), ``:smoke``, ``:reflections`` (the
          crystal tower reads the reflections of the cell, in place of the graph of its atoms);
          ``:accelerator`` (width 256, half-precision products, length by the clock); several joined
          by commas, as ``:cpu,reflections``.
"""

from configs import common

REFLECTIONS = {
    "kind": "reflections",
    "width": 512,
    "ffn": 2048,
    "heads": 16,
    "layers": 4,
    "channels": 32,
    "num_reflections": 128,
    "dtype": "float32",
}
ACCELERATOR_TOWER = {"width": 256, "layers": 4}
CPU_REFLECTIONS = {
    "width": 128, "ffn": 256, "heads": 8, "layers": 1, "channels": 16, "num_reflections": 64
}  # fmt: skip


def get_config(arg: str = ""):
    asked = common.variants(arg, "cpcp", "cpu", "smoke", "reflections", "accelerator")
    config = common.base("cpcp")
    config.model = {
        "encoder": {
            "width": 512,
            "ffn": 2048,
            "heads": 16,
            "layers": 8,
            "dropout": 0.1,
            "position": "fourier",
            "room": 0.0,  # peaks per pattern that a training batch has room for; 0: for all
            "dtype": "float32",  # "bfloat16": of the products, where the hardware is quick at them
        },
        "network": {"width": 512, "layers": 6, "num_freqs": 128},
        "projection": 512,
        "lattice_form": "log_metric",
        "init_log_scale": 3.0,
    }
    # Negatives come from the batch, so it is large for every size of cell.
    config.data.update({"budget_pairs": 25600, "max_batch": 128})
    config.train.optim.learning_rate = 5e-4
    if "reflections" in asked:
        config.model.network = REFLECTIONS
    if "accelerator" in asked:
        config.model.encoder.update(common.ACCELERATOR_ENCODER)
        config.model.network.update(ACCELERATOR_TOWER)
        config.model.projection = 256
        config.data.update({"budget_pairs": 409600, "max_batch": 1024})
        common.accelerator(config, num_seconds=300.0)
    if asked & {"cpu", "smoke"}:
        config.model.encoder.update(common.CPU_ENCODER)
        cspnet = {"width": 128, "layers": 4, "num_freqs": 32}
        config.model.network.update(CPU_REFLECTIONS if "reflections" in asked else cspnet)
        config.model.projection = 128
        config.train.optim.learning_rate = 1e-3
        config.train.num_epochs = 6
    if "smoke" in asked:
        common.smoke(config)
    return config
