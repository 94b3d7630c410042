"""Draws of a generator alone, in two halves: drawn where the accelerator is, judged on a CPU.

    python -m benchmarks.draws draw --weights RUN --data data/qmof_val.npz --out draws.npz
    python -m benchmarks.draws judge draws.npz --data data/qmof_val.npz --towers CPCP_WEIGHTS

Given are composition, Z and the lines of the crystal measured without effects over the range of
the recipe; with ``--control lattice`` its lattice too, with ``--control shuffled`` another
crystal's lines. Candidates are ranked by similarity of the towers; nothing is searched or refined.
``draw`` needs neither pymatgen nor the towers.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks.inputs import write
from xtalnet_jax import compilation, tasks
from xtalnet_jax.crystals.crystal import Crystal
from xtalnet_jax.data.examples import gather
from xtalnet_jax.data.fixtures import load_set
from xtalnet_jax.data.packed import PackedSet
from xtalnet_jax.pretrained.weights import load_weights
from xtalnet_jax.pxrd.pattern import Lines

CONTROLS = ("none", "shuffled", "lattice")
KS = (1, 3, 5, 10, 20)


def choose(packed: PackedSet, num_items: int, skip: int) -> np.ndarray:
    """Rows of the items, drawn with seed 0 as `launch.evaluate` draws them."""
    return np.random.default_rng(0).permutation(packed.num_crystals)[skip : skip + num_items]


def draw(
    weights: str,
    data: str,
    num_items: int,
    num_candidates: int,
    control: str = "none",
    skip: int = 0,
    overrides: dict[str, Any] | None = None,
    chunk: int = 8,
) -> dict[str, np.ndarray]:
    """Draw for every item; arrays [n_item, n_candidate, ...] and the ids of the items."""
    params, recipe = load_weights(weights)
    config = ConfigDict(recipe)
    with config.unlocked():
        config.update_from_flattened_dict(overrides or {})
    edges = np.asarray(config.data.num_atoms_buckets)
    packed, generator = load_set(data, int(edges[-1])), tasks.make_generator(config)
    rows = choose(packed, num_items, skip)
    shown = np.roll(rows, 1) if control == "shuffled" else rows
    most = int(packed.num_atoms[rows].max())
    numbers = np.zeros((len(rows), num_candidates, most), np.uint8)
    coords = np.zeros((*numbers.shape, 3), np.float32)
    lattice = np.zeros((len(rows), num_candidates, 3, 3), np.float32)
    params, begin, done = jax.device_put(params), time.perf_counter(), 0
    for edge, part in _parts(packed.num_atoms[rows], edges, chunk):
        padded = np.pad(part, (0, chunk - len(part)), "edge")
        crystals = gather(packed, rows[padded], edge).crystals
        lines = Lines(*(x[shown[padded]] for x in (packed.lines_inv_d, packed.lines_strength)))
        peaks = tasks.measure(config, None, lines, tasks.clean_effects(config.pattern))
        repeat = lambda x: jnp.repeat(jnp.asarray(x), num_candidates, 0)  # noqa: E731
        condition = jax.tree.map(repeat, generator.condition(params, peaks))
        keys = jax.vmap(jax.random.key)(np.repeat(rows[padded], num_candidates))
        keys = jax.vmap(jax.random.fold_in)(keys, np.tile(np.arange(num_candidates), chunk))
        known = {"lattice": repeat(crystals.lattice)} if control == "lattice" else {}
        batch = generator.sample(params, keys, condition, repeat(crystals.atomic_numbers), **known)
        for kept, values in zip((numbers, coords, lattice), batch):
            values = np.asarray(values).reshape(chunk, num_candidates, *values.shape[1:])
            if kept is lattice:
                kept[part] = values[: len(part)]
            else:
                kept[part, :, : min(edge, most)] = values[: len(part), :, :most]
        done += len(part)
        print(f"{done}/{len(rows)} {time.perf_counter() - begin:.1f} s", flush=True)
    return {
        "id": packed.id[rows],
        "atomic_numbers": numbers,
        "frac_coords": coords,
        "lattice": lattice,
    }


def _parts(
    num_atoms: np.ndarray, edges: np.ndarray, chunk: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Atoms to pad to, and at most ``chunk`` items of that size, until all have been."""
    bucket = np.searchsorted(edges, num_atoms)
    for b in np.unique(bucket):
        members = np.flatnonzero(bucket == b)
        for start in range(0, len(members), chunk):
            yield int(edges[b]), members[start : start + chunk]


def crystals_of(drawn: dict[str, np.ndarray]) -> list[list[Crystal]]:
    """The candidates of every item as crystals without padding."""
    return [
        [Crystal(z[z > 0].astype(np.int32), x[z > 0], cell) for z, x, cell in zip(*of_item)]
        for of_item in zip(drawn["atomic_numbers"], drawn["frac_coords"], drawn["lattice"])
    ]


def similarities(
    towers: str, items: PackedSet, candidates: list[list[Crystal]]
) -> list[np.ndarray]:
    """Cosine similarity of each item's pattern to its candidates, in reduced primitive cells."""
    from benchmarks.towers import embed
    from xtalnet_jax.crystals.reduction import primitive, standardise
    from xtalnet_jax.data.packed import from_crystals

    patterns, _ = embed(towers, items)
    flat = [standardise(primitive(c)) for of_item in candidates for c in of_item]
    none = (np.zeros((len(flat), 1), np.float32),) * 2
    _, vectors = embed(towers, from_crystals([str(i) for i in range(len(flat))], flat, none))
    ends = np.cumsum([len(of_item) for of_item in candidates])[:-1]
    return [v @ p for v, p in zip(np.split(vectors, ends), patterns)]


def judge(path: Path, data: str, towers: str, timeout: float) -> tuple[list[dict[str, Any]], str]:
    """Match rates of one file of draws at every tolerance, ranked and random, and a remark."""
    from xtalnet_jax.evaluation.generation import attempts_from_records, match_at_k
    from xtalnet_jax.evaluation.matching import TOLERANCES, MatchPair, match_many

    with np.load(path) as file:
        drawn = {k: file[k] for k in file.files}
    packed = load_set(data)
    place = {str(i): k for k, i in enumerate(packed.id)}
    items = packed.select(np.array([place[str(i)] for i in drawn["id"]]))
    candidates = crystals_of(drawn)
    ids = [str(i) for i in items.id]
    scores = {
        (item, k): float(s)
        for item, row in zip(ids, similarities(towers, items, candidates))
        for k, s in enumerate(row)
    }
    pairs = [
        MatchPair(item, k, c, items.crystal(i))
        for i, (item, of_item) in enumerate(zip(ids, candidates))
        for k, c in enumerate(of_item)
    ]
    records = list(match_many(pairs, workers=2, timeout_s=timeout))
    rows = []
    for tolerance in TOLERANCES:
        attempts = attempts_from_records(records, scores, tolerance)
        for order in ("ranked", "random"):
            row: dict[str, Any] = {"draws": path.stem, "tolerance": tolerance, "order": order}
            for at in match_at_k(attempts, KS, order, ids):  # type: ignore[arg-type]
                rate = at.match_rate
                row[f"k={at.k}"] = (
                    f"{100 * rate.value:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
                )
                row[f"rmse@{at.k}"] = "" if at.rmse is None else f"{at.rmse.value:.3f}"
            rows.append(row)
    late = sum(r.status == "timeout" for r in records)
    remark = f"{path.stem}: {len(ids)} patterns, {len(pairs)} draws"
    return rows, f"{remark}, {late} of them given up after {timeout:g} s of matching."


def main() -> None:
    """Draw and save, or load and judge."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = arguments.add_subparsers(dest="command", required=True)
    drawing = commands.add_parser("draw", help="draw candidates and save them")
    drawing.add_argument("--weights", required=True, help="run folder or weights file")
    drawing.add_argument("--data", required=True, help="packed set")
    drawing.add_argument("--num_items", type=int, default=80)
    drawing.add_argument("--num_candidates", type=int, default=20)
    drawing.add_argument("--skip", type=int, default=0, help="items left out at the front")
    drawing.add_argument("--control", choices=CONTROLS, default="none")
    drawing.add_argument("--set", default="{}", help="recipe fields to change, as JSON")
    drawing.add_argument("--out", type=Path, required=True)
    judging = commands.add_parser("judge", help="match and rank saved candidates")
    judging.add_argument("draws", type=Path, nargs="+")
    judging.add_argument("--data", required=True, help="the same packed set")
    judging.add_argument("--towers", required=True, help="weights of CPCP")
    judging.add_argument("--timeout", type=float, default=20.0, help="seconds for one match")
    judging.add_argument("--out", type=Path, default=Path("results/draws.json"))
    args = arguments.parse_args()
    compilation.use_cache()
    if args.command == "draw":
        drawn = draw(
            args.weights, args.data, args.num_items, args.num_candidates, args.control, args.skip,
            json.loads(args.set),
        )  # fmt: skip
        args.out.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(args.out, **drawn)
        return
    judged = [judge(path, args.data, args.towers, args.timeout) for path in args.draws]
    notes = [
        "Composition and Z given; names with lattice: the lattice too; with shuffled: another "
        "crystal's pattern. Ranked by the towers; per cent, 95 % intervals."
    ]
    rows = [row for found, _ in judged for row in found]
    write(args.out, "Draws of the generator alone", rows, [*notes, *(r for _, r in judged)])


if __name__ == "__main__":
    main()
