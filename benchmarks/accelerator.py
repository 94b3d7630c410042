"""What one accelerator makes of training steps, of the flow sampler and of the simulator.

    python -m benchmarks.accelerator --inputs FOLDER_OF_BENCH_NPZ

All in one process on the first device, on copies of the reference's input batches padded to one
size. Programs are compiled in threads and timed when all are ready; the file is written after every
case, and one that fails leaves an ``error``. FLOP are those of the matrix products of the traced
program (`matmul_flop`), recomputation included, and ``share_of_peak`` relates them to a large
bfloat16 product on the same device. ``num`` crystals, candidates or patterns are made at once.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import itertools
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from benchmarks import simulation, training
from benchmarks.inputs import clocked, input_parser, load_inputs, write
from xtalnet_jax.crystals.crystal import pack_crystals
from xtalnet_jax.data.packed import PackedSet
from xtalnet_jax.pxrd.pattern import CU_KALPHA, Lines
from xtalnet_jax.pxrd.simulate import inv_d_range, lines_of

BFLOAT16 = {"model.encoder.dtype": "bfloat16", "model.network.dtype": "bfloat16"}
NUM_PRODUCTS = 8  # in one program, so that the peak is not that of the launches
NUM_LINES = 128  # made up, of each crystal
NUM_STEPS = 20  # of the sampler
CHUNK = 256  # patterns whose profiles are made at once


class Recipe(NamedTuple):
    """A recipe at work, shared by the cases that use it."""

    config: Any
    step: Any  # jitted training step
    state: Any  # the first one, on the host


class Prepared(NamedTuple):
    """One case, traced and lowered."""

    num: int
    flop: float | None  # of one call
    dtype: str  # of the products
    compile: Callable[[], Any]  # runs in a thread
    start: Callable[[Any], Callable[[], Any]]  # from what that gave: arrays, and what to time


Cases = dict[str, Callable[[], Prepared]]


def matmul_flop(jaxpr: Jaxpr | ClosedJaxpr) -> float:
    """Sum ``2 M N K batch`` over the matrix products of a program and of all it calls.

    The body of a scan counts once for each turn, the larger branch of a ``cond``, the body of a
    ``while_loop``, whose number of turns nobody knows, once.
    """
    total = 0.0
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, params = eqn.primitive.name, eqn.params
        inner = [matmul_flop(part) for part in _programs(tuple(params.values()))]
        turns = params["length"] if name == "scan" else 1
        total += turns * (max(inner, default=0.0) if name == "cond" else sum(inner))
        if name == "dot_general":
            avals: Any = (eqn.invars[0].aval, eqn.outvars[0].aval)
            shape, result = (aval.shape for aval in avals)
            (axes, _), _ = params["dimension_numbers"]
            total += 2.0 * math.prod(result) * math.prod(shape[k] for k in axes)
    return total


def _programs(value: Any) -> Iterator[Jaxpr | ClosedJaxpr]:
    if isinstance(value, (Jaxpr, ClosedJaxpr)):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _programs(part)


def inputs(folder: str, size: str, copies: int) -> PackedSet:
    """Read one input batch so many times over, with made up powder lines."""
    once = load_inputs(folder, size)
    packed = once.select(np.tile(np.arange(once.num_crystals), copies))
    drawn = np.random.default_rng(0).random((2, packed.num_crystals, NUM_LINES), np.float32)
    inv_d = np.sort(0.05 + 0.95 * drawn[0])
    return packed._replace(lines_inv_d=inv_d, lines_strength=drawn[1])


def batch_of(packed: PackedSet) -> Any:
    """All crystals of a set as one batch, padded to the largest."""
    return training.cut(packed, (int(packed.num_atoms.max()),))[0]


def config_of(name: str, overrides: dict[str, Any], sets: Mapping[str, PackedSet]) -> Any:
    """Return ``ccsg`` or ``cpcp`` (both in bfloat16), ``flow cspnet`` or ``flow VARIANT``.

    A flow knows the statistics of all sets together, so that one program serves them.
    """
    from configs import flow
    from xtalnet_jax.tasks import with_statistics

    kind, _, variant = name.partition(" ")
    if kind != "flow":
        return training.recipe(kind, BFLOAT16 | overrides)
    config = flow.get_config("" if variant == "cspnet" else variant)
    config.sampling.num_steps = NUM_STEPS
    with config.unlocked():
        config.update_from_flattened_dict(overrides)
    known = ([getattr(s, k) for s in sets.values()] for k in ("lattice", "num_atoms"))
    return with_statistics(config, *map(np.concatenate, known))


def make_recipe(name: str, overrides: dict[str, Any], sets: Mapping[str, PackedSet]) -> Recipe:
    """Make the first state of a recipe, from the first crystal."""
    config, packed = config_of(name, overrides, sets), next(iter(sets.values()))
    step, state = training.make_step(config, batch_of(packed.select(np.arange(1))))
    return Recipe(config, step, jax.device_get(state))


def peak_case(size: int) -> Prepared:
    """A chain of bfloat16 products of random matrices of so many rows and columns."""
    shape = jax.ShapeDtypeStruct((size, size), jnp.bfloat16)
    chain = jax.jit(lambda a, x: jax.lax.scan(lambda x, _: (a @ x, None), x, length=NUM_PRODUCTS))
    traced = chain.trace(shape, shape)

    def start(program: Any) -> Callable[[], Any]:
        a, x = jax.random.normal(jax.random.key(0), (2, size, size), jnp.bfloat16)
        return functools.partial(program, a / math.sqrt(size), x)

    flop = matmul_flop(traced.jaxpr)
    return Prepared(NUM_PRODUCTS, flop, "bfloat16", traced.lower().compile, start)


def training_case(recipe: Recipe, packed: PackedSet) -> Prepared:
    """Forward, backward and optimiser on all crystals of a set at once."""
    batch = batch_of(packed)
    traced = recipe.step.trace(recipe.state, (), batch)

    def start(program: Any) -> Callable[[], Any]:
        state = jax.device_put(recipe.state, may_alias=False)  # it will be donated
        on_device = jax.device_put(batch)

        def advance() -> Any:
            nonlocal state
            state, metrics = program(state, (), on_device)
            return metrics

        if not math.isfinite(loss := float(advance()["loss"])):
            raise RuntimeError(f"the loss {loss} is not finite")
        return advance

    return _prepared(recipe, packed, traced, start)


def sampling_case(recipe: Recipe, packed: PackedSet) -> Prepared:
    """One candidate for every crystal of a set, its pattern encoded too."""
    from xtalnet_jax.tasks import make_generator

    batch, generator = batch_of(packed), make_generator(recipe.config)

    def draw(params: Any, key: jax.Array, peaks: Any, numbers: jax.Array) -> Any:
        return generator.sample(params, key, generator.condition(params, peaks), numbers)

    given = (jax.random.key(1), batch.peaks, batch.crystals.atomic_numbers)
    traced = jax.jit(draw).trace(recipe.state.params, *given)

    def start(program: Any) -> Callable[[], Any]:
        return functools.partial(program, *jax.device_put((recipe.state.params, *given)))

    return _prepared(recipe, packed, traced, start)


def simulation_case(packed: PackedSet, name: str, profile: bool) -> Prepared:
    """Lines, and if asked profiles, of all crystals over a range of `benchmarks.simulation`."""
    *_, angles, _, _, num_lines = simulation.CASES[name]
    low, high = inv_d_range(CU_KALPHA, angles)
    num_bins = round((angles[1] - angles[0]) / simulation.STEP) + 1
    num = packed.num_crystals
    crystals = pack_crystals([packed.crystal(k) for k in range(num)])

    def simulate() -> Any:
        found = lines_of(crystals, high, num_lines, inv_d_min=low)
        chunks = [Lines(*(v[i : i + CHUNK] for v in found)) for i in range(0, num, CHUNK)]
        return [simulation.profiles(c, angles[0], num_bins) for c in chunks] if profile else found

    def first_call() -> Any:  # shapes follow from the crystals: nothing to compile without them
        return jax.block_until_ready(simulate())

    return Prepared(num, None, "float32", first_call, lambda _: simulate)


def _prepared(recipe: Recipe, packed: PackedSet, traced: Any, start: Any) -> Prepared:
    dtype = recipe.config.model.network.get("dtype", "float32")
    flop = matmul_flop(traced.jaxpr)
    return Prepared(packed.num_crystals, flop, dtype, traced.lower().compile, start)


def make_cases(args: Any, pool: Executor) -> Cases:
    """Return how to prepare each case that is asked for, by name."""
    sets = {size: inputs(args.inputs, size, args.copies) for size in args.size}
    overrides, ours = json.loads(args.set), f"flow {args.variant}"

    recipes: dict[str, Future] = {}

    def later(make: Any, name: str, packed: PackedSet) -> Callable[[], Prepared]:
        if name not in recipes:
            recipes[name] = pool.submit(make_recipe, name, overrides, sets)
        return lambda: make(recipes[name].result(), packed)

    cases: Cases = {}
    if re.search(args.cases, "peak"):
        cases["peak"] = functools.partial(peak_case, args.peak_size)
    kinds = {"training": training_case, "sampling": sampling_case}
    wanted = ("training ccsg", "training cpcp", f"training {ours}", "sampling flow cspnet")
    for name, (size, packed) in itertools.product((*wanted, f"sampling {ours}"), sets.items()):
        if re.search(args.cases, f"{name} {size}"):
            kind, _, recipe = name.partition(" ")
            cases[f"{name} {size}"] = later(kinds[kind], recipe, packed)
    for made, name in itertools.product(("lines", "lines and profile"), simulation.CASES):
        size, case = name.split(",")[0], f"simulation {made} {name}"
        if size in sets and re.search(args.cases, case):
            more = made != "lines"
            cases[case] = functools.partial(simulation_case, sets[size], name, more)
    return cases


def measure(cases: Cases, pool: Executor, repeats: int) -> Iterator[dict[str, Any]]:
    """Compile all cases, then time one after the other; yields a row for each."""
    begin, peak = time.perf_counter(), None
    pending: dict[str, Any] = {}
    for name, prepare in cases.items():
        try:
            prepared = prepare()
            pending[name] = prepared, pool.submit(_timed, prepared.compile)
        except Exception as error:
            pending[name] = error.with_traceback(None)
        print(f"{time.perf_counter() - begin:.1f} s: traced {name}", flush=True)
    wait([case[1] for case in pending.values() if isinstance(case, tuple)])
    print(f"{time.perf_counter() - begin:.1f} s: compiled all", flush=True)
    for name in cases:
        row: dict[str, Any] = {"case": name, "error": None}
        try:
            _fill(row, pending.pop(name), repeats, peak)
        except Exception as error:
            words = " ".join(str(error).replace("|", "/").split())
            row["error"] = f"{type(error).__name__}: {words}"[:300]
        gc.collect()  # the arrays of the case
        peak = row.get("tflop_per_s") if name == "peak" else peak
        print(f"{time.perf_counter() - begin:.1f} s: {json.dumps(row)}", flush=True)
        yield row


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.perf_counter()
    return call(), time.perf_counter() - begin


def _fill(row: dict[str, Any], case: Any, repeats: int, peak: float | None) -> None:
    if isinstance(case, Exception):
        raise case
    (num, flop, dtype, _, start), future = case
    row |= {"num": num, "dtype": dtype, "gflop_each": flop and flop / num / 1e9}
    program, row["compile_s"] = future.result()
    if sizes := flop and program.memory_analysis():
        held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
        row["program_gb"] = (held + sizes.temp_size_in_bytes - sizes.alias_size_in_bytes) / 1e9
    seconds = clocked(start(program), repeats).wall
    row |= {"s": seconds, "per_s": num / seconds, "s_each": seconds / num}
    row["tflop_per_s"] = flop and flop / seconds / 1e12
    row["share_of_peak"] = flop and peak and row["tflop_per_s"] / peak
    stats = jax.devices()[0].memory_stats()
    row["peak_gb"] = stats["peak_bytes_in_use"] / 1e9 if stats else None


def main() -> None:
    """Measure the cases asked for and write the table after each."""
    arguments = input_parser(__doc__, "results/accelerator.json")
    arguments.add_argument("--copies", type=int, default=16, help="of the input batches")
    arguments.add_argument("--cases", default="", help="regular expression for their names")
    arguments.add_argument("--variant", default="accelerator", help="of configs/flow.py")
    arguments.add_argument("--peak_size", type=int, default=8192, help="of the bfloat16 product")
    arguments.add_argument("--threads", type=int, default=8, help="that compile")
    args = arguments.parse_args()
    if not args.inputs:
        arguments.error("--inputs=FOLDER with the bench_*.npz files is needed")
    note = (
        f"Device: {jax.devices()[0].device_kind}. program_gb is what the program needs, peak_gb "
        f"the most the process has held so far; sampling takes {NUM_STEPS} evaluations."
    )
    rows: list[dict[str, Any]] = []
    with ThreadPoolExecutor(args.threads) as pool:
        for row in measure(make_cases(args, pool), pool, args.repeats):
            rows.append(row)
            empty = dict.fromkeys(key for row in rows for key in row if key != "error")
            with contextlib.redirect_stdout(io.StringIO()):  # the table is printed at the end
                write(args.out, "One accelerator", [empty | row for row in rows], [note])
    print(args.out.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
