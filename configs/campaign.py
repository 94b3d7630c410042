"""Everything from one lease of an accelerator: towers, generator, generator for frameworks.

Command:  python -m launch.campaign --config=configs/campaign.py --seconds=3000
Variants: ``:smoke`` (seconds, built-in crystals).
"""

from ml_collections import ConfigDict

from configs import cpcp, flow, flow_qmof


def get_config(arg: str = ""):
    variant = "accelerator" if arg == "" else arg
    towers = cpcp.get_config(f"reflections,{variant}")
    generator = flow.get_config(variant if variant != "smoke" else "smoke,transformer")
    stages = {
        "cpcp": {"share": 0.2, "recipe": towers},
        "flow": {"share": 0.4, "recipe": generator},
        "flow_qmof": {"share": 0.4, "recipe": flow_qmof.get_config(variant)},
    }
    if variant == "smoke":
        stages["flow_qmof"]["recipe"] = generator.copy_and_resolve_references()
        for stage in stages.values():
            stage["recipe"].train.update(
                {"log_every": 5, "eval_every": 0, "checkpoint_every_steps": 0}
            )
            stage["recipe"].train.optim.warmup_epochs = 0.0
    stages["flow_qmof"]["recipe"].init_from = "flow"
    for stage in stages.values():  # files that any channel out of a machine takes
        stage["recipe"].train.update({"checkpoint_format": "npz", "checkpoint_part_mib": 15.0})
    return ConfigDict({"stages": stages})
