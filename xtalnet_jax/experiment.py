"""From a recipe to trained weights: the shell around `tasks` and `training`.

``run(config, workdir)`` is what `launch.pretrain` and `launch.train` call, and what a notebook
calls to train on its own crystals. The result of a run is ``workdir/weights.safetensors``: the
averaged parameters with the recipe inside, which `pretrained.load_weights` reads back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from xtalnet_jax import tasks
from xtalnet_jax.data.batches import BucketedBatches, ResidentBatches, count_crystals
from xtalnet_jax.data.fixtures import load_set
from xtalnet_jax.data.packed import PackedSet
from xtalnet_jax.pretrained.merge import merge_params
from xtalnet_jax.pretrained.weights import load_weights, save_weights
from xtalnet_jax.training.loop import train
from xtalnet_jax.training.state import averaged_params


def batches(
    config: ConfigDict, packed: PackedSet, shuffle: bool
) -> BucketedBatches | ResidentBatches:
    """Cut the set into batches as ``config.data`` says; on an accelerator the set lives there."""
    cut = BucketedBatches(
        packed,
        config.data.num_atoms_buckets,
        budget_pairs=config.data.budget_pairs,
        batch_size_range=(config.data.min_batch, config.data.max_batch),
        seed=config.train.seed,
        shuffle=shuffle,
        num_devices=jax.device_count(),
    )
    return cut if jax.default_backend() == "cpu" else ResidentBatches(cut)


def run(
    config: ConfigDict, workdir: str | Path, stop_after_seconds: float | None = None
) -> dict[str, Any]:
    """Train as the recipe says, from the last checkpoint in ``workdir`` if there is one.

    Args:
        config: a recipe of ``configs/``; changed only by taking over the lattice statistics of
            ``init_from``.
        workdir: folder for checkpoints, metrics and the final weights.
        stop_after_seconds: leave with a checkpoint after this time; running again continues.

    Returns:
        The averaged parameters.

    Raises:
        ValueError: an unusable recipe or data set.
    """
    largest = max(config.data.num_atoms_buckets)
    train_set = load_set(config.data.train, largest)
    eval_set = load_set(config.data.eval, largest)
    rows = np.random.default_rng(0).permutation(eval_set.num_crystals)[: config.data.num_eval]
    eval_set = eval_set.select(np.sort(rows))
    donor, donor_config = load_weights(config.init_from) if config.init_from else ({}, {})
    if "lattice_stats" in donor_config:  # its parameters mean what they do with these only
        with config.unlocked():
            config.lattice_stats = donor_config["lattice_stats"]
    config = tasks.with_statistics(config, train_set.lattice, train_set.num_atoms)
    state = train(
        tasks.task_from_config(config),
        batches(config, train_set, shuffle=True),
        config.train,
        workdir,
        eval_source=batches(config, eval_set, shuffle=False),
        stop_after_seconds=stop_after_seconds,
        count_fn=count_crystals,
        initialize=(lambda params: merge_params(donor, params).params) if donor else None,
        record=config.to_dict(),
    )
    params = jax.device_get(averaged_params(state))
    save_weights(Path(workdir) / "weights.safetensors", params, config.to_dict())
    return params
