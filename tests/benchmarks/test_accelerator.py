"""Products are counted as arithmetic says; the cases run, and one that fails stops no other."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import accelerator, inputs
from benchmarks.accelerator import matmul_flop

A, B = jnp.ones((3, 4)), jnp.ones((4, 5))
ONE = 2 * 3 * 4 * 5


def flop(fn: object, *args: jax.Array) -> float:
    return matmul_flop(jax.make_jaxpr(fn)(*args))


def turns(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=7)[0].sum()


def test_products_are_counted() -> None:
    assert flop(jnp.matmul, A, B) == ONE
    assert flop(jax.jit(jnp.matmul), A, B) == ONE
    batched, right = jnp.ones((6, 3, 4)), jnp.ones((6, 4, 5))
    assert flop(lambda a, b: jnp.einsum("gij,gjk->gik", a, b), batched, right) == 6 * ONE
    assert flop(lambda a, b: jnp.tensordot(a, b, 2), A, A) == 2 * 3 * 4


def test_loops_gradients_and_branches_are_followed() -> None:
    square = jnp.ones((4, 4))
    one = 2 * 3 * 4 * 4
    assert flop(turns, A, square) == 7 * one
    assert flop(jax.grad(turns, (0, 1)), A, square) == 3 * 7 * one
    assert flop(jax.grad(jax.checkpoint(turns), (0, 1)), A, square) == 4 * 7 * one
    branches = (lambda a: (a @ square).sum(), lambda a: (a @ square @ square).sum())
    assert flop(lambda a: jax.lax.cond(a[0, 0] > 0, *branches, a), A) == 2 * one

    @jax.custom_vjp
    def product(a: jax.Array) -> jax.Array:
        return a @ square

    product.defvjp(lambda a: (product(a), None), lambda _, g: (g @ square @ square,))
    assert flop(product, A) == one
    assert flop(jax.grad(lambda a: product(a).sum()), A) == 3 * one


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, cases: str) -> dict:
    rng = np.random.default_rng(0)
    np.savez(
        folder / inputs.SIZES["MP-20"].file,
        num_atoms=[2, 3],
        atom_types=rng.integers(1, 90, 5),
        frac_coords=rng.random((5, 3), np.float32),
        lengths=np.full((2, 3), 4, np.float32),
        angles=np.full((2, 3), 90, np.float32),
        peak_id=rng.integers(500, 1300, (2, 5)),
        peak_intensity=rng.uniform(0.1, 1, (2, 5)).astype(np.float32),
    )
    out = folder / "found.json"
    flags = f"--inputs={folder} --out={out} --cases={cases} --size MP-20 --copies=2 --repeats=1"
    flags += " --threads=1 --peak_size=64 --variant=smoke,transformer"
    monkeypatch.setattr(sys, "argv", ["accelerator", *flags.split()])
    accelerator.main()
    assert out.with_suffix(".md").exists()
    return json.loads(out.read_text())


def test_a_case_that_fails_leaves_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no | room")

    monkeypatch.setattr(accelerator, "make_recipe", fail)
    found = run(tmp_path, monkeypatch, "peak|sampling.flow.smoke")
    peak, failed = found["rows"]
    assert peak["gflop_each"] == 2 * 64**3 / 1e9
    assert peak["tflop_per_s"] > 0
    assert peak["error"] is None
    assert failed["case"] == "sampling flow smoke,transformer MP-20"
    assert failed["error"] == "MemoryError: no / room"
    assert set(failed) == set(peak)
    assert found["notes"][0].startswith("Device: ")


@pytest.mark.slow
def test_cases_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(tmp_path, monkeypatch, "peak|flow.smoke|simulation")
    assert [row["error"] for row in found["rows"]] == [None] * 5
    assert all(row["per_s"] > 0 for row in found["rows"])
    for row in found["rows"][1:3]:
        assert row["num"] == 4
        assert row["gflop_each"] > 0
        assert row["share_of_peak"] > 0
