"""From a recipe to trained weights: the shell around `tasks` and `training`.

``run(config, workdir)`` is what `launch.pretrain` and `launch.train` call, and what a notebook
calls to train on its own crystals; ``run_in_turn(stages, ...)`` runs several recipes within a given
time, for `launch.campaign`. The result of a run is ``workdir/weights.safetensors``: the
averaged parameters with the recipe inside, which `pretrained.load_weights` reads back.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
from ml_collections import ConfigDict

from xtalnet_jax import tasks
from xtalnet_jax.data.batches import (
    BucketedBatches,
    EncodedBatches,
    MixedBatches,
    ResidentBatches,
    count_crystals,
)
from xtalnet_jax.data.examples import Example, gather
from xtalnet_jax.data.fixtures import load_set
from xtalnet_jax.data.packed import PackedSet
from xtalnet_jax.pretrained.merge import merge_params
from xtalnet_jax.pretrained.weights import load_weights, save_weights
from xtalnet_jax.training.loop import train
from xtalnet_jax.training.progress import format_seconds
from xtalnet_jax.training.state import averaged_params
from xtalnet_jax.types import Params

Batches: TypeAlias = BucketedBatches | MixedBatches | EncodedBatches | ResidentBatches


def batches(
    config: ConfigDict, packed: PackedSet, shuffle: bool, patterns: np.ndarray | None = None
) -> Batches:
    """Cut the set into batches as ``config.data`` says; on an accelerator the set lives there.

    With ``patterns`` [num_crystals, d] each crystal comes with what its pattern was encoded to.
    """
    kind = MixedBatches if config.data.get("mixed", False) else BucketedBatches
    cut = kind(
        packed,
        config.data.num_atoms_buckets,
        budget_pairs=config.data.budget_pairs,
        batch_size_range=(config.data.min_batch, config.data.max_batch),
        seed=config.train.seed,
        shuffle=shuffle,
        num_devices=jax.device_count(),
    )
    if jax.default_backend() != "cpu":
        return ResidentBatches(cut, patterns)
    return cut if patterns is None else EncodedBatches(cut, patterns)


def encode_patterns(
    encode: Callable[[Params, Example], jax.Array],
    params: Params,
    packed: PackedSet,
    say: Callable[[str], None] = lambda _: None,
    batch_size: int = 64,
) -> np.ndarray:
    """What ``encode`` (see `tasks.pattern_encoder`) says of each pattern of the set, [n, d].

    Progress goes to ``say`` every ten seconds.
    """
    num, width = packed.num_crystals, int(packed.num_atoms.max())
    params = jax.device_put(params)  # once, not with every batch
    found, begin = [], time.monotonic()
    said = begin
    for start in range(0, num, batch_size):
        index = np.arange(start, start + batch_size)
        batch = gather(packed, np.where(index < num, index, -1), width)
        found.append(np.asarray(encode(params, batch)))
        done, now = min(start + batch_size, num), time.monotonic()
        if now - said > 10:
            rate, said = done / (now - begin), now
            left = format_seconds((num - done) / rate)
            say(f"encoded {done}/{num} patterns | {rate:.4g}/s | {left} left")
    return np.concatenate(found)[:num]


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
    sets = ((train_set, True), (eval_set, False))
    encode = tasks.pattern_encoder(config)

    def encoded(params: Params, say: Callable[[str], None]) -> tuple[Batches, Batches]:
        assert encode is not None
        patterns = (encode_patterns(encode, params, packed, say) for packed, _ in sets)
        source, eval_source = (batches(config, *each, own) for each, own in zip(sets, patterns))
        return source, eval_source

    source, eval_source = (batches(config, *each) for each in sets)
    state = train(
        tasks.task_from_config(config),
        source,
        config.train,
        workdir,
        eval_source=eval_source,
        stop_after_seconds=stop_after_seconds,
        count_fn=count_crystals,
        initialize=(lambda params: merge_params(donor, params).params) if donor else None,
        prepare=encoded if encode else None,
        record=config.to_dict(),
    )
    params = jax.device_get(averaged_params(state))
    save_weights(Path(workdir) / "weights.safetensors", params, config.to_dict())
    return params


_LEAST = 0.02
"""Share of its time that a stage may have left and count as finished."""


def run_in_turn(
    stages: Iterable[tuple[str, ConfigDict, float]], workdir: str | Path, num_seconds: float
) -> list[str]:
    """Train several recipes one after the other, each for its share of the time.

    A stage starts from the weights of an earlier one if ``init_from`` of its recipe is that one's
    name. Its run ends by the clock with its learning rate at 0 (``train.num_seconds``). What each
    has used of its time is in ``workdir/spent.json``, so that the same call goes on after an
    interruption; finished stages are passed over.

    Args:
        stages: name (its folder in ``workdir``), recipe and share of each; shares add up to 1.
        workdir: of the whole.
        num_seconds: for all stages together, compilation included.

    Returns:
        Names of the stages that are finished.

    Raises:
        ValueError: shares that do not add up to 1, or as `run`.
    """
    stages, root = list(stages), Path(workdir)
    shares = [share for _, _, share in stages]
    if abs(sum(shares) - 1) > 1e-6 or min(shares) <= 0:
        raise ValueError(f"the shares of the stages are {shares}, expected positive, sum 1")
    root.mkdir(parents=True, exist_ok=True)
    record = root / "spent.json"
    spent: dict[str, float] = json.loads(record.read_text()) if record.is_file() else {}
    finished: list[str] = []
    for name, recipe, share in stages:
        left = share * num_seconds - spent.get(name, 0.0)
        if left > _LEAST * share * num_seconds:
            config = recipe.copy_and_resolve_references()
            with config.unlocked():
                config.train.update({"num_seconds": left, "num_steps": 0, "num_epochs": 0})
                if config.init_from in finished:
                    config.init_from = str(root / config.init_from)
            begin = time.monotonic()
            run(config, root / name)
            spent[name] = spent.get(name, 0.0) + time.monotonic() - begin
            _write_json(record, spent)
            if share * num_seconds - spent[name] > _LEAST * share * num_seconds:
                break  # interrupted
        finished.append(name)
    return finished


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(json.dumps(content))
    partial.replace(path)
