"""The page to read first: where data, networks and mathematics meet.

A recipe (``configs/``) becomes a `Task` to train (`cpcp_task`, `ccsg_task`, `flow_task`) and, with
trained parameters, the two things inference needs: an `Embedder` (CPCP: patterns and crystals to
unit vectors) and a `Generator` (CCSG: a pattern and a composition to crystals). A training step
receives an `Example` (crystals and their instrument-free powder lines); the pattern is measured
from the lines inside the step, with fresh experimental effects each time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from xtalnet_jax.contrastive.infonce import info_nce
from xtalnet_jax.crystals.crystal import CrystalBatch
from xtalnet_jax.crystals.sizes import Sizes
from xtalnet_jax.data.examples import Example
from xtalnet_jax.diffusion import flow, flow_sampler, losses, sampler
from xtalnet_jax.diffusion.lattice_code import LatticeStats, decode, fit_stats
from xtalnet_jax.diffusion.schedules import make_schedules
from xtalnet_jax.models.ccsg import CCSG, Condition, FlowCCSG
from xtalnet_jax.models.cpcp import CPCP
from xtalnet_jax.models.fast import behind
from xtalnet_jax.pxrd.augment import Effects, peaks_from_lines
from xtalnet_jax.pxrd.pattern import (
    CU_KALPHA,
    Lines,
    PeakBatch,
    inv_d_from_two_theta,
    two_theta_from_inv_d,
)
from xtalnet_jax.training.task import Task
from xtalnet_jax.types import DenoiseFn, Params

GRID_START, GRID_STEP, GRID_SIZE = 3.0, 0.02, 2048
"""The reference's 2-theta grid (degrees): its position table has one entry per point."""


class Embedder(NamedTuple):
    """CPCP at work; both return unit vectors [n_graph, d]."""

    patterns: Callable[[Params, PeakBatch], jax.Array]
    crystals: Callable[[Params, CrystalBatch], jax.Array]


class Generator(NamedTuple):
    """CCSG at work: encode a pattern once, then draw as many crystals as wanted.

    ``condition(params, peaks)`` gives rows for patterns; ``sample(params, key, condition,
    atomic_numbers, lattice=None)`` draws one crystal per row, ``lattice`` [n_graph, 3, 3] is kept
    if given. ``key`` is one key or one per row.
    """

    condition: Callable[[Params, PeakBatch], Condition]
    sample: Callable[..., CrystalBatch]


def task_from_config(config: ConfigDict) -> Task:
    """Build the task that ``config.task`` names: ``cpcp``, ``ccsg`` or ``flow``."""
    makers = {"cpcp": cpcp_task, "ccsg": ccsg_task, "flow": flow_task}
    if config.task not in makers:
        raise ValueError(f"task is {config.task!r}, expected one of {', '.join(makers)}")
    return makers[config.task](config)


def with_statistics(config: ConfigDict, lattices: np.ndarray, num_atoms: np.ndarray) -> ConfigDict:
    """Write into a flow recipe what it must know of its training set (`LatticeStats`).

    Other recipes, and one that has its statistics already, are returned as they are.
    """
    if config.task != "flow" or "lattice_stats" in config:
        return config
    stats = fit_stats(lattices, num_atoms)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.lattice_stats = {k: np.asarray(v).tolist() for k, v in stats._asdict().items()}
    return config


# Patterns ---------------------------------------------------------------------------------------


def effects_from_config(pattern: ConfigDict) -> Effects:
    """Return the experimental effects of training patterns."""
    return Effects.clean(**{k: _hashable(v) for k, v in dict(pattern.effects).items()})


def clean_effects(pattern: ConfigDict) -> Effects:
    """Return the instrument of the evaluation: no random effect, on the grid of training.

    Its range is that of training where this is always the same, else 5 to 90 degrees.
    """
    effects = effects_from_config(pattern)
    ends = {"start": effects.start, "end": effects.end}
    fixed = {name: limits for name, limits in ends.items() if limits[0] == limits[1]}
    return Effects.clean(num_bins=effects.num_bins, **fixed)


def measure(config: ConfigDict, key: jax.Array | None, lines: Lines, effects: Effects) -> PeakBatch:
    """Measure patterns of ``lines`` and list their peaks in the form the encoder reads."""
    return to_form(peaks_from_lines(key, lines, effects, config.pattern.num_peaks), config)


def to_form(peaks: PeakBatch, config: ConfigDict) -> PeakBatch:
    """Express positions (1/d) as the recipe's encoder wants them, dropping what it cannot see."""
    if config.pattern.form == "inv_d":
        return _within_trained_range(peaks, effects_from_config(config.pattern))
    angle = two_theta_from_inv_d(jnp.asarray(peaks.position), CU_KALPHA)
    index = jnp.round((angle - GRID_START) / GRID_STEP)
    mask = peaks.mask & (index >= 0) & (index < GRID_SIZE)
    return peaks._replace(
        position=jnp.where(mask, index, 0.0),
        intensity=jnp.where(mask, peaks.intensity, 0.0),
        mask=mask,
    )


def _within_trained_range(peaks: PeakBatch, effects: Effects) -> PeakBatch:
    """Hide from an encoder that was trained on one range of 1/d that others exist.

    It has learned nothing from the measured range, which never varied, and misreads any other one:
    it is told the range it knows, and peaks outside are dropped. An encoder trained on varied
    ranges or wavelengths gets the peaks as they are.
    """
    fixed = effects.start[0] == effects.start[1] and effects.end[0] == effects.end[1]
    if not fixed or len(effects.radiations) > 1:
        return peaks
    edges = np.array([effects.start[0], effects.end[0]], np.float32)
    low, high = inv_d_from_two_theta(edges, effects.radiations[0][0])
    mask = peaks.mask & (peaks.position >= low) & (peaks.position <= high)
    measured = jnp.stack([jnp.full(len(mask), low), jnp.full(len(mask), high)], -1)
    return PeakBatch(
        jnp.where(mask, peaks.position, 0.0),
        jnp.where(mask, peaks.intensity, 0.0),
        mask,
        measured.astype(jnp.result_type(peaks.position)),
    )


def _training_peaks(config: ConfigDict) -> Callable[[jax.Array, Example, bool], PeakBatch]:
    if config.pattern.source == "own":

        def own(key: jax.Array, example: Example, train: bool) -> PeakBatch:
            del key, train
            if example.peaks is None:
                raise ValueError(
                    "the recipe reads the data set's own patterns (pattern.source='own'), but the "
                    "packed set has none; prepare it from a source that brings patterns, or use "
                    "pattern.source='lines'"
                )
            return to_form(example.peaks, config)

        return own

    noisy, clean = effects_from_config(config.pattern), clean_effects(config.pattern)

    def peaks(key: jax.Array, example: Example, train: bool) -> PeakBatch:
        return measure(config, key if train else None, example.lines, noisy if train else clean)

    return peaks


# Contrastive pretraining ------------------------------------------------------------------------


def cpcp_model(config: ConfigDict) -> CPCP:
    """Build the two towers of a ``cpcp`` recipe."""
    return CPCP(**_fields(config.model))


def cpcp_task(config: ConfigDict) -> Task:
    """Contrastive pretraining: pull the pattern and the crystal of each example together."""
    model, peaks_of = cpcp_model(config), _training_peaks(config)

    def init(key: jax.Array, example: Example) -> Params:
        return model.init(key, peaks_of(key, example, True), example.crystals)

    def loss(
        params: Params, key: jax.Array, example: Example, train: bool, axis_name: str | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        key_peaks, key_dropout = jax.random.split(key)
        peaks = peaks_of(key_peaks, example, train)
        patterns, crystals, scale = model.apply(
            params,
            peaks,
            example.crystals,
            train,
            example.sizes,
            rngs={"dropout": key_dropout},
        )
        return info_nce(patterns, crystals, scale, example.crystals.graph_mask, axis_name=axis_name)

    return Task(init, loss, "cpcp")


def make_embedder(config: ConfigDict) -> Embedder:
    """Return the two towers as jitted functions of the parameters."""
    model: Any = cpcp_model(config)  # flax's apply is typed as if it might return variables

    @jax.jit
    def patterns(params: Params, peaks: PeakBatch) -> jax.Array:
        return model.apply(params, to_form(peaks, config), method="embed_patterns")

    @jax.jit
    def crystals(params: Params, batch: CrystalBatch) -> jax.Array:
        return model.apply(params, batch, method="embed_crystals")

    return Embedder(patterns, crystals)


# Generation: the paper's diffusion --------------------------------------------------------------


def ccsg_task(config: ConfigDict) -> Task:
    """The paper's generator: wrapped-normal score on coordinates, DDPM on the lattice matrix."""
    model, schedules = CCSG(**_fields(config.model)), make_schedules(config.diffusion.num_steps)

    def loss_of(
        denoise_fn: DenoiseFn, key: jax.Array, crystals: CrystalBatch, known: jax.Array
    ) -> Any:
        del known  # never
        return losses.diffusion_loss(key, denoise_fn, crystals, schedules)

    def start(crystals: CrystalBatch) -> tuple[jax.Array, jax.Array]:
        return crystals.lattice, jnp.ones(crystals.lattice.shape[0], jnp.int32)

    return _generation_task("ccsg", config, model, loss_of, start)


def flow_task(config: ConfigDict) -> Task:
    """Our default generator: flow matching on coordinates and on the lattice code."""
    model, stats = flow_model(config), _stats(config)
    settings = flow.FlowConfig(**dict(config.flow))

    def loss_of(
        denoise_fn: DenoiseFn, key: jax.Array, crystals: CrystalBatch, known: jax.Array
    ) -> Any:
        return flow.flow_loss(key, denoise_fn, crystals, stats, settings, known)

    def start(crystals: CrystalBatch) -> tuple[jax.Array, jax.Array]:
        num_graphs = crystals.lattice.shape[0]
        return jnp.zeros((num_graphs, 6)), jnp.zeros(num_graphs)

    return _generation_task("flow", config, model, loss_of, start)


def _generation_task(
    name: str, config: ConfigDict, model: Any, loss_of: Callable, start: Callable
) -> Task:
    peaks_of = _training_peaks(config)
    share = config.get("flow", {}).get("known_lattice", 0.0)

    def init(key: jax.Array, example: Example) -> Params:
        crystals = jax.tree.map(jnp.asarray, example.crystals)
        lattice, t = start(crystals)
        peaks = peaks_of(key, example, True)
        numbers, coords = crystals.atomic_numbers, crystals.frac_coords
        metric = jnp.tile(jnp.eye(3)[None], (len(lattice), 1, 1))
        extra = {"metric": metric} if name == "flow" else {}
        return model.init(key, peaks, numbers, coords, lattice, t, **extra)

    def loss(
        params: Params, key: jax.Array, example: Example, train: bool, axis_name: str | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        del axis_name  # a mean over devices of local means, weighted by device
        key_peaks, key_noise, key_dropout, key_known = jax.random.split(key, 4)
        if example.pattern is not None:
            none = jnp.zeros((len(example.pattern), 0), bool)
            condition = Condition(example.pattern, None, none, none)
        else:
            peaks = peaks_of(key_peaks, example, train)
            # A frozen encoder is also without its dropout: what it says of a pattern is fixed.
            condition = model.apply(
                params,
                peaks,
                train,
                bool(config.train.freeze),
                method="condition",
                rngs={"dropout": key_dropout},
            )
        known = flow.draw_known(key_known, len(example.crystals.atomic_numbers), share)
        condition = condition._replace(known_lattice=known)
        crystals = example.crystals
        denoise_fn = _bind(model, params, condition, crystals, config, example.sizes)
        return loss_of(denoise_fn, key_noise, example.crystals, known)

    return Task(init, loss, name)


def pattern_encoder(config: ConfigDict) -> Callable[[Params, Example], jax.Array] | None:
    """``encode(params, example)`` [n_graph, d] of a generator whose patterns stay what they are.

    They do if the data set brings its own patterns, the encoder is frozen, and the generator reads
    no more of it than that; then they need be encoded but once. None else.
    """
    frozen = any(p.strip("/") in ("params", "params/pxrd_encoder") for p in config.train.freeze)
    looks = config.model.network.get("cross_attention", 0)
    if config.task == "cpcp" or config.pattern.source != "own" or not frozen or looks:
        return None
    model = _generator_model(config)
    peaks_of = _training_peaks(config)

    @jax.jit
    def encode(params: Params, example: Example) -> jax.Array:
        peaks = peaks_of(jax.random.key(0), example, False)
        return model.apply(params, peaks, method="condition").pooled

    return encode


def flow_model(config: ConfigDict) -> FlowCCSG:
    """Build the velocity network of a ``flow`` recipe."""
    return FlowCCSG(**_fields(config.model))


def _generator_model(config: ConfigDict) -> Any:
    return flow_model(config) if config.task == "flow" else CCSG(**_fields(config.model))


def make_generator(config: ConfigDict) -> Generator:
    """Return condition and sampler of a ``ccsg`` or ``flow`` recipe as jitted functions."""
    model = _generator_model(config)

    @jax.jit
    def condition(params: Params, peaks: PeakBatch) -> Condition:
        return model.apply(params, to_form(peaks, config), method="condition")

    @jax.jit
    def sample(
        params: Params,
        key: jax.Array,
        condition: Condition,
        atomic_numbers: jax.Array,
        lattice: jax.Array | None = None,
    ) -> CrystalBatch:
        crystals = CrystalBatch(atomic_numbers, None, None)
        if lattice is not None:
            condition = condition._replace(known_lattice=jnp.ones(len(atomic_numbers), bool))
        denoise_fn = _bind(model, params, condition, crystals, config)
        if config.task == "flow":
            options = flow_sampler.FlowSampling(**dict(config.sampling))
            if config.flow.get("prediction") == "clean":
                denoise_fn = flow.velocity_from_clean(denoise_fn)
            batch, _ = flow_sampler.flow_sample(
                key, denoise_fn, atomic_numbers, _stats(config), options, lattice=lattice
            )
        else:
            schedules = make_schedules(config.diffusion.num_steps)
            batch, _ = sampler.sample(key, denoise_fn, atomic_numbers, schedules, lattice=lattice)
        return batch

    return Generator(condition, sample)


def _bind(
    model: Any,
    params: Params,
    condition: Condition,
    crystals: CrystalBatch,
    config: ConfigDict,
    sizes: Sizes | None = None,
) -> DenoiseFn:
    """Bind everything but the noisy state; distances in the flow come from the decoded cell.

    With ``sizes`` the network runs on each group of rows at its own padded size.
    """
    uses_distances = config.task == "flow" and config.model.network.get("num_radial", 0)

    numbers = jnp.asarray(crystals.atomic_numbers)

    def denoise(x: jax.Array, lattice: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        extra = {}
        if uses_distances:
            cell = decode(lattice, crystals.num_atoms, _stats(config))
            extra["metric"] = jax.lax.stop_gradient(jnp.einsum("gik,gjk->gij", cell, cell))

        def part(rows: slice, n_node: int, others: Any = None) -> tuple[jax.Array, jax.Array]:
            own, cell, time, metric = jax.tree.map(
                lambda a: a[rows], (condition, lattice, t, extra)
            )
            atoms = numbers[rows, :n_node], x[rows, :n_node]
            cell = behind(cell, others)
            coord, cell = model.apply(params, own, *atoms, cell, time, **metric, method="denoise")
            return jnp.pad(coord, ((0, 0), (0, x.shape[1] - n_node), (0, 0))), cell

        if sizes is None:
            return part(slice(None), x.shape[1])
        parts: list[tuple[jax.Array, jax.Array]] = []
        for group in sizes.groups(len(x)):
            parts.append(part(*group, parts[-1][0] if parts else None))
        return jax.tree.map(lambda *rows: jnp.concatenate(rows), *parts)

    return denoise


def _stats(config: ConfigDict) -> LatticeStats:
    if "lattice_stats" not in config:
        raise ValueError(
            "this flow recipe has no lattice_stats yet; see tasks.with_statistics, which "
            "experiment.run applies to the training set"
        )
    return LatticeStats(*(np.asarray(config.lattice_stats[k]) for k in LatticeStats._fields))


def _fields(section: ConfigDict) -> dict[str, Any]:
    """Plain dict of a config section, mappings frozen as flax fields want them."""
    return {k: _hashable(v) for k, v in section.to_dict().items()}


def _hashable(value: Any) -> Any:
    from flax.core import FrozenDict

    if isinstance(value, Mapping):
        return FrozenDict({k: _hashable(v) for k, v in value.items()})
    if isinstance(value, (list, tuple)):
        return tuple(_hashable(v) for v in value)
    return value
