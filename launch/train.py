"""Train a crystal generator conditioned on patterns: the paper's diffusion or flow matching.

  python -m launch.train --config=configs/flow.py --config.init_from=runs/cpcp --workdir=runs/flow
  python -m launch.train --config=configs/flow.py:smoke           seconds, built-in crystals

Running the same command again continues from the last checkpoint. The data set is written by
`python -m launch.prepare`. The result is WORKDIR/weights.safetensors.
"""

from launch import cli, training_flags

if __name__ == "__main__":
    training_flags.define("configs/flow.py", "runs/generator")
    cli.run(lambda: training_flags.train(("flow", "ccsg")))
