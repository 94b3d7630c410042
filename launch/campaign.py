"""Train several recipes one after the other in a given time: one command for a lease of a GPU.

  python -m launch.campaign --config=configs/campaign.py --seconds=3000 --workdir=runs/campaign
  python -m launch.campaign --config=configs/campaign.py:smoke --seconds=60

Each stage has its share of the seconds, compilation included, and ends with its learning rate at 0;
a later stage may start from an earlier one. Interrupted, the same command goes on. Checkpoints are
in files of at most 15 MiB. Each stage leaves WORKDIR/STAGE/weights.safetensors, and with
--export=DIR, --dtype=bfloat16 (or int8) a smaller copy in DIR/STAGE.safetensors.
"""

import sys
from pathlib import Path

from absl import flags

from launch import cli, training_flags

FLAGS = flags.FLAGS


def main() -> None:
    """Run the stages and export what is finished."""
    if FLAGS.seconds is None or FLAGS.seconds <= 0:
        raise ValueError(f"--seconds is {FLAGS.seconds}, expected the time for all stages together")
    from xtalnet_jax import compilation, experiment
    from xtalnet_jax.pretrained.weights import load_weights, save_weights

    compilation.use_cache()
    stages = [(name, s.recipe, s.share) for name, s in FLAGS.config.stages.items()]
    finished = experiment.run_in_turn(stages, FLAGS.workdir, FLAGS.seconds)
    for name in finished if FLAGS.export else ():
        params, recipe = load_weights(Path(FLAGS.workdir) / name)
        save_weights(Path(FLAGS.export) / f"{name}.safetensors", params, recipe, FLAGS.dtype)
    left = [name for name, *_ in stages if name not in finished]
    print(f"finished: {', '.join(finished) or 'nothing'}; left: {', '.join(left) or 'nothing'}")


if __name__ == "__main__":
    training_flags.define_config("configs/campaign.py")
    FLAGS.register_key_flag_for_module(sys.argv[0], FLAGS["config"])
    flags.DEFINE_float("seconds", None, "time for all stages together")
    flags.DEFINE_string("workdir", "runs/campaign", "folder of all stages")
    flags.DEFINE_string("export", None, "folder for copies of the weights")
    flags.DEFINE_string("dtype", "bfloat16", "how the copies are stored")
    cli.run(main)
