"""Train CPCP: contrastive pretraining of patterns against crystals.

  python -m launch.pretrain --config=configs/cpcp.py --workdir=runs/cpcp
  python -m launch.pretrain --config=configs/cpcp.py:smoke        seconds, built-in crystals

Running the same command again continues from the last checkpoint. The data set is written by
`python -m launch.prepare`. The result is WORKDIR/weights.safetensors.
"""

from launch import cli, training_flags

if __name__ == "__main__":
    training_flags.define("configs/cpcp.py", "runs/cpcp")
    cli.run(lambda: training_flags.train(("cpcp",)))
