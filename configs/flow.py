"""CCSG by flow matching: the default generator (inorganic cells of at most 20 atoms).

Command:  python -m launch.train --config=configs/flow.py --config.init_from=runs/cpcp
Variants: ``:cpu`` (width 128), ``:smoke``, ``:transformer`` (over atoms, in place of CSPNet);
          several joined by commas, as ``:cpu,transformer``. ``:accelerator``: a transformer of 29
          million parameters with an encoder of its own, cells of up to 32 atoms, for minutes of one
          H100 and for inference on a CPU.
"""

from configs import common

TRANSFORMER = {
    "kind": "transformer",
    "width": 512,
    "layers": 12,
    "heads": 8,
    "pair_width": 64,
    "expand": 2,
    "num_freqs": 32,
    "num_radial": 16,
    "cross_attention": 2,
    "dtype": "float32",
}
ACCELERATOR = {
    "width": 384,
    "layers": 12,
    "heads": 6,
    "num_radial": 32,
    "cross_attention": 3,
}
CPU_TRANSFORMER = {"width": 192, "layers": 6, "pair_width": 32, "num_freqs": 16}


def get_config(arg: str = ""):
    asked = common.variants(arg, "flow", "cpu", "smoke", "transformer", "accelerator")
    config = common.base("flow")
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
        "network": {
            "kind": "cspnet",  # the other is "transformer"
            "width": 512,
            "layers": 6,
            "num_freqs": 128,
            "num_radial": 16,
            "cross_attention": 2,
            "heads": 8,
            "dtype": "float32",
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
    if asked & {"transformer", "accelerator"}:
        config.model.network = TRANSFORMER
    if "accelerator" in asked:
        config.model.network.update(ACCELERATOR)
        config.model.encoder.update(common.ACCELERATOR_ENCODER)
        config.data.train = "data/mp20_train.npz,data/mp_extra.npz,data/mp_21to52.npz"
        config.data.update(
            {"num_atoms_buckets": (8, 14, 20, 32), "budget_pairs": 200000, "max_batch": 1024}
        )
        common.accelerator(config, num_seconds=300.0)
    if asked & {"cpu", "smoke"}:
        config.model.encoder.update(common.CPU_ENCODER)
        cspnet = {"width": 128, "num_freqs": 32}
        config.model.network.update(CPU_TRANSFORMER if "transformer" in asked else cspnet)
        config.model.time_dim = 64
        config.train.num_epochs = 12
    if "smoke" in asked:
        common.smoke(config)
        config.sampling.num_steps = 4
    return config
