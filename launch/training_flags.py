"""Flags and start of the training commands."""

from __future__ import annotations

import sys

from absl import flags
from ml_collections import config_flags

FLAGS = flags.FLAGS


def define_config(default_config: str) -> None:
    """Define ``--config``."""
    # ml_collections would apply --config.x=y to a default while the flag is defined: it could not
    # name fields that only the recipe asked for has, and a typing error would be a traceback.
    if not any(a.lstrip("-").partition("=")[0] == "config" for a in sys.argv[1:]):
        sys.argv.insert(1, f"--config={default_config}")
    config_flags.DEFINE_config_file(
        "config",
        None,
        f"recipe; fields are changed by --config.section.field=value; without it {default_config}",
    )


def define(default_config: str, default_workdir: str) -> None:
    """Define ``--config``, ``--workdir`` and ``--stop_after``."""
    define_config(default_config)
    flags.DEFINE_string("workdir", default_workdir, "folder for checkpoints, metrics and weights")
    flags.DEFINE_float("stop_after", None, "stop with a checkpoint after so many seconds")
    for name in ("config", "workdir", "stop_after"):
        FLAGS.register_key_flag_for_module(sys.argv[0], FLAGS[name])


def train(tasks: tuple[str, ...]) -> None:
    """Run the recipe that the flags name; it must be for one of ``tasks``."""
    config = FLAGS.config
    if config.task not in tasks:
        raise ValueError(
            f"the recipe trains {config.task!r}, this command trains {' or '.join(tasks)}; "
            f"use launch.{'pretrain' if config.task == 'cpcp' else 'train'}"
        )
    from xtalnet_jax import compilation, experiment

    compilation.use_cache()
    experiment.run(config, FLAGS.workdir, FLAGS.stop_after)
