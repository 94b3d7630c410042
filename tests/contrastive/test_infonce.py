import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtalnet_jax.contrastive.infonce import info_nce, scale_from_log


def pairs(n, d, seed=0):
    x = np.random.default_rng(seed).normal(size=(2, n, d)).astype(np.float32)
    x[1] += x[0]
    return (jnp.asarray(v / np.linalg.norm(v, axis=1, keepdims=True)) for v in x)


@pytest.mark.parametrize("name", ["small", "large", "edge"])
def test_golden_losses_of_the_reference(golden, name):
    data = np.load(golden / f"narrow_cpcp_{name}_f32.npz")
    patterns, crystals = (jnp.asarray(data[f"{k}_feat_norm"]) for k in ("pxrd", "crystal"))
    scale = scale_from_log(1.0)
    np.testing.assert_allclose(scale, data["logit_scale_exp"][0], rtol=1e-6)
    np.testing.assert_allclose(scale * patterns @ crystals.T, data["logits_per_pxrd"], atol=2e-5)
    loss, metrics = info_nce(patterns, crystals, scale)
    for ours, key in (
        (loss, "loss"),
        (metrics["loss_pattern"], "loss_CPCP_pxrd"),
        (metrics["loss_crystal"], "loss_CPCP_atom"),
    ):
        np.testing.assert_allclose(ours, data[key], rtol=3e-6, atol=1e-6)


def test_known_answers():
    basis = jnp.eye(4)
    loss, metrics = info_nce(basis, basis, 3.0)
    np.testing.assert_allclose(loss, np.log(1 + 3 * np.exp(-3.0)), rtol=5e-6)
    assert metrics["top1_pattern"] == 1
    same = jnp.repeat(basis[:1], 4, 0)
    loss, metrics = info_nce(same, same, 3.0)
    np.testing.assert_allclose(loss, np.log(4), rtol=1e-6)
    assert metrics["top1_pattern"] == 0  # a tie is no hit
    shifted = info_nce(basis, jnp.roll(basis, 1, 0), 3.0)[0]
    np.testing.assert_allclose(shifted, 3 + np.log(1 + 3 * np.exp(-3.0)), rtol=5e-6)


def test_directions_are_not_confused():
    patterns, crystals = pairs(6, 5)
    a, b = info_nce(patterns, crystals, 5.0)[1], info_nce(crystals, patterns, 5.0)[1]
    assert a["loss_pattern"] != a["loss_crystal"]
    assert a["loss_pattern"] == b["loss_crystal"]


def test_scale_is_clamped_with_zero_gradient_beyond():
    assert scale_from_log(10.0) == 100
    assert jax.grad(scale_from_log)(10.0) == 0
    assert jax.grad(scale_from_log)(1.0) == pytest.approx(np.e)


def test_padded_pairs_change_neither_loss_nor_gradient():
    patterns, crystals = pairs(5, 8)
    junk = jnp.concatenate([jnp.full((2, 8), 1e3), jnp.zeros((1, 8))])
    mask = jnp.arange(8) < 5

    def padded(p, c):
        return info_nce(jnp.concatenate([p, junk]), jnp.concatenate([c, junk]), 4.0, mask)

    grad = jax.value_and_grad(lambda f, p, c: f(p, c)[0], argnums=(1, 2))
    plain = jax.jit(lambda p, c: grad(lambda p, c: info_nce(p, c, 4.0), p, c))
    wide = jax.jit(lambda p, c: grad(padded, p, c))
    for x, y in zip(
        jax.tree.leaves(plain(patterns, crystals)), jax.tree.leaves(wide(patterns, crystals))
    ):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)
    m = padded(patterns, crystals)[1]
    assert m["top1_pattern"] == info_nce(patterns, crystals, 4.0)[1]["top1_pattern"]


def test_a_batch_of_padding_alone_is_harmless():
    x = jnp.zeros((3, 4))
    value, grad = jax.value_and_grad(lambda x: info_nce(x, x, 2.0, jnp.zeros(3, bool))[0])(x)
    assert value == 0
    assert not grad.any()


def test_duplicates_are_no_negatives():
    patterns, crystals = pairs(4, 8)
    double = jnp.array([0, 1, 2, 3, 0])
    again = (jnp.concatenate([x, x[:1]]) for x in (patterns, crystals))
    metrics = info_nce(*again, 4.0, ids=double)[1]
    single = info_nce(patterns, crystals, 4.0)[1]
    # rows 0 and 4 see exactly the negatives they saw alone; 1, 2 and 3 see the double one twice
    assert metrics["top1_pattern"] == pytest.approx(
        (single["top1_pattern"] * 4 + float(np.argmax(patterns[0] @ crystals.T) == 0)) / 5
    )
    twice = (jnp.repeat(x[:1], 3, 0) for x in (patterns, crystals))
    assert info_nce(*twice, 4.0, ids=jnp.zeros(3, int))[0] == pytest.approx(0, abs=1e-6)


DEVICES = """
import functools, jax, jax.numpy as jnp, numpy as np
from xtalnet_jax.contrastive.infonce import info_nce, scale_from_log
assert jax.device_count() == 4
rng = np.random.default_rng(0)
xa, xb = (jnp.asarray(rng.normal(size=(12, 6)), jnp.float32) for _ in range(2))
mask = jnp.arange(12) < 10                      # devices hold 3, 3, 3 and 1 real rows
ids = jnp.array([0, 1, 2, 3, 4, 5, 6, 0, 8, 2, 10, 11])
params = dict(a=jnp.asarray(rng.normal(size=(6, 5)), jnp.float32), log_scale=jnp.float32(1.3))

def loss(params, xa, xb, mask, ids, axis_name=None):
    za, zb = (x @ params["a"] for x in (xa, xb))
    za, zb = (z / jnp.linalg.norm(z, axis=-1, keepdims=True) for z in (za, zb))
    return info_nce(za, zb, scale_from_log(params["log_scale"]), mask, ids, axis_name)

grad = functools.partial(jax.value_and_grad(loss, has_aux=True))
expected = grad(params, xa, xb, mask, ids)

@functools.partial(jax.pmap, axis_name="device", in_axes=(None, 0, 0, 0, 0))
def step(*args):
    return jax.lax.pmean(grad(*args, axis_name="device"), "device")

split = [x.reshape(4, 3, *x.shape[1:]) for x in (xa, xb, mask, ids)]
found = jax.tree.map(lambda x: x[1], step(params, *split))
for x, y in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)

local = jax.pmap(lambda *args: loss(params, *args)[0])(*split)
by_hand = [loss(params, *(x[i] for x in split))[0] for i in range(4)]
np.testing.assert_allclose(local, jnp.stack(by_hand), rtol=1e-5)
assert abs(local[0] - expected[0][0]) > 0.1     # per-device negatives are another loss
print("equal")
"""


def test_four_devices_equal_one():
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }
    run = subprocess.run(
        [sys.executable, "-c", DEVICES],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert "equal" in run.stdout
