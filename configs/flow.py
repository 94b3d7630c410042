"""CCSG by flow matching: the default generator (inorganic cells of at most 20 atoms).

Command:  python -m launch.train --config=configs/flow.py --config.init_from=runs/cpcp
Variants: ``:cpu`` (width 128, the size of the bundled weights), ``:smoke``.
"""

from configs import common


def get_config(arg: str = ""):
    config = common.base("flow")
    config.model = {
        "encoder": {
            "width": 512,
            "ffn": 2048,
            "heads": 16,
            "layers": 8,
            "dropout": 0.1,
            "position": "fourier",
        },
        "network": {
            "width": 512,
            "layers": 6,
            "num_freqs": 128,
            "num_radial": 16,
            "cross_attention": 2,
            "heads": 8,
        },
        "time_dim": 256,
    }
    config.flow = {
        "coord_weight": 20.0,
        "lattice_weight": 1.0,
        "num_sweeps": 2,
        "known_lattice": 0.5,
    }
    config.sampling = {"num_steps": 30, "coord_speed": 3.0}
    config.train.num_epochs = 300
    if arg in ("cpu", "smoke"):
        config.model.encoder.update(common.CPU_ENCODER)
        config.model.network.update({"width": 128, "num_freqs": 32})
        config.model.time_dim = 64
        config.train.num_epochs = 12
    if arg == "smoke":
        common.smoke(config)
        config.sampling.num_steps = 4
    elif arg not in ("", "cpu"):
        raise ValueError(f"unknown variant {arg!r} of configs/flow.py; known: cpu, smoke")
    return config
