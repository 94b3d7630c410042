"""Fast products agree with exact ones, and dropout drops what it says, independently."""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtalnet_jax.models import fast
from xtalnet_jax.models.fast import (
    Dropout,
    behind,
    dot_general,
    gelu,
    num_blocks,
    product,
    random_bits,
    silu,
)
from xtalnet_jax.models.transformer import LayerNorm


@pytest.mark.parametrize("shape", [(7, 16), (2, 3, 5, 16)])
def test_half_precision_product_and_gradients(shape: tuple[int, ...]) -> None:
    key_x, key_w, key_g = jax.random.split(jax.random.key(0), 3)
    x, w = jax.random.normal(key_x, shape), jax.random.normal(key_w, (16, 9))
    weight = jax.random.normal(key_g, (*shape[:-1], 9))

    def loss(x: jax.Array, w: jax.Array, dtype: str) -> jax.Array:
        return (product(x, w, dtype) * weight).sum()

    exact = jax.value_and_grad(loss, (0, 1))(x, w, "float32")
    half = jax.value_and_grad(loss, (0, 1))(x, w, "bfloat16")
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(half)):
        assert a.shape == b.shape
        assert b.dtype == jnp.float32
        assert 0 < np.abs(a - b).max() < 0.02 * np.sqrt(np.square(a).mean()) + 0.3 * (a.ndim == 0)


def test_float32_product_is_untouched() -> None:
    x, w = (
        jax.random.normal(jax.random.key(1), (4, 8)),
        jax.random.normal(jax.random.key(2), (8, 3)),
    )
    np.testing.assert_array_equal(product(x, w, x.dtype), jnp.matmul(x, w))
    own = nn.Dense(3, dot_general=dot_general)
    params = own.init(jax.random.key(3), x)
    np.testing.assert_array_equal(own.apply(params, x), nn.Dense(3).apply(params, x))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["gelu", "silu"])
def test_activations_and_their_gradients_are_those_of_jax(name: str, dtype: str) -> None:
    ours, theirs = {"gelu": (gelu, nn.gelu), "silu": (silu, nn.silu)}[name]
    theirs = functools.partial(theirs, **({"approximate": False} if name == "gelu" else {}))
    x = jnp.concatenate([jnp.linspace(-12.0, 12.0, 401), jnp.array([-1e4, 0.0, 1e4])])
    exact = jax.vmap(jax.value_and_grad(theirs))(x)
    found = jax.vmap(jax.value_and_grad(ours))(x.astype(dtype))
    for a, b in zip(exact, found):
        assert b.dtype == dtype
        np.testing.assert_allclose(
            b.astype("float32"), a, *((0, 1e-6), (1e-2, 1e-2))[dtype != "float32"]
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("of", [gelu, silu])
def test_product_of_an_activation(of: fast.Activation, dtype: str) -> None:
    key_x, key_w, key_g = jax.random.split(jax.random.key(0), 3)
    x, w = 2 * jax.random.normal(key_x, (2, 3, 5, 16)), jax.random.normal(key_w, (16, 9))
    g = jax.random.normal(key_g, (2, 3, 5, 9))

    def found(x: jax.Array, w: jax.Array) -> jax.Array:
        return product(x, w, dtype, of=of)

    exact, exact_back = jax.vjp(lambda x, w: of(x) @ w, x, w)
    y, back = jax.vjp(found, x, w)
    for a, b in zip((exact, *exact_back(g)), (y, *back(g)), strict=True):
        tolerance = 1e-5 if dtype == "float32" else 0.03
        np.testing.assert_allclose(b, a, rtol=0, atol=tolerance * np.abs(a).max())


def test_what_is_multiplied_is_not_kept_for_the_gradient() -> None:
    """Of each product its input is held, and neither the activation nor its slope."""
    num, x, w = 6, jnp.ones((4096, 128)), jnp.full((128, 128), 0.01)

    def loss(weights: list[jax.Array], x: jax.Array) -> jax.Array:
        for w in weights:
            x = product(x, w, x.dtype, of=silu)
        return x.sum()

    program = jax.jit(jax.grad(loss)).lower([w] * num, x).compile()
    held = program.memory_analysis().temp_size_in_bytes / x.nbytes
    assert num - 1 < held < num + 4


def test_parts_behind_each_other_need_the_memory_of_one() -> None:
    xs, w = [jnp.full((1024, 128), float(i)) for i in range(6)], jnp.full((128, 128), 0.01)

    def temporaries(link: Callable[..., jax.Array]) -> tuple[float, jax.Array]:
        def loss(w: jax.Array) -> jax.Array:
            y = None
            total = jnp.zeros(())
            for x in xs:
                x = link(x @ w, y)
                for _ in range(4):
                    x = product(x, w, x.dtype, of=silu)
                total, y = total + (x * x).sum(), x
            return total

        program = jax.jit(jax.grad(loss)).lower(w).compile()
        return program.memory_analysis().temp_size_in_bytes / xs[0].nbytes, program(w)

    side_by_side, expected = temporaries(lambda x, _: x)
    in_turn, found = temporaries(behind)
    assert in_turn < 0.8 * side_by_side
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_gradients_of_nothing() -> None:
    back = jax.grad(lambda x: product(x, jnp.ones((4, 3)), x.dtype, of=silu).sum())
    assert back(jnp.ones((0, 4))).shape == (0, 4)


def test_blocks_divide_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "CACHE_BYTES", 100)
    assert [num_blocks(n, 10) for n in (10, 11, 20, 21, 13)] == [1, 11, 2, 3, 13]
    assert num_blocks(4, 1000) == 4
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert num_blocks(20, 1000) == 1


def test_bits_are_uniform_and_independent() -> None:
    num = 2**18
    one, two = (random_bits(jax.random.key(seed), (8, num // 8)) for seed in (0, 1))
    a, b = (np.asarray(v, np.float64).ravel() / 2**32 for v in (one, two))
    assert abs(a.mean() - 0.5) < 5 * np.sqrt(1 / 12 / num)
    filled = np.histogram(a, 256, (0, 1))[0]
    chi_square = ((filled - num / 256) ** 2 / (num / 256)).sum()
    assert abs(chi_square - 255) < 5 * np.sqrt(2 * 255)
    lags = [np.corrcoef(a[k:], a[:-k])[0, 1] for k in (1, 2, 8, 64, 4096, num // 8)]
    assert np.abs([*lags, np.corrcoef(a, b)[0, 1]]).max() < 6 / np.sqrt(num - num // 8)
    ones = np.unpackbits(np.asarray(one).view(np.uint8)).reshape(-1, 32).mean(0)
    assert np.abs(ones - 0.5).max() < 5 * 0.5 / np.sqrt(num)
    xor = np.unpackbits(np.asarray(one ^ two).view(np.uint8)).mean()
    assert abs(xor - 0.5) < 5 * 0.5 / np.sqrt(32 * num)


def test_dropout_keeps_the_mean_and_is_off_in_evaluation() -> None:
    x = jnp.ones((64, 1000))
    layer = Dropout(0.3)
    dropped = layer.apply({}, x, False, rngs={"dropout": jax.random.key(0)})
    kept = np.asarray(dropped) > 0
    assert abs(kept.mean() - 0.7) < 5 * np.sqrt(0.21 / x.size)
    np.testing.assert_allclose(np.asarray(dropped)[kept], 1 / 0.7, rtol=1e-6)
    np.testing.assert_array_equal(layer.apply({}, x, True), x)
    grad = jax.grad(lambda x: layer.apply({}, x, False, rngs={"dropout": jax.random.key(0)}).sum())
    np.testing.assert_allclose(grad(x), dropped, rtol=1e-6)


def test_too_many_elements_are_refused() -> None:
    with pytest.raises(ValueError, match="smaller batches"):
        jax.eval_shape(lambda k: random_bits(k, (2**16, 2**16)), jax.random.key(0))


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_layer_norm_and_its_gradients_are_those_of_flax(offset: float) -> None:
    key_x, key_s, key_b, key_g = jax.random.split(jax.random.key(0), 4)
    x = offset + jax.random.normal(key_x, (2, 5, 16))
    params = {"scale": jax.random.normal(key_s, (16,)), "bias": jax.random.normal(key_b, (16,))}
    g = jax.random.normal(key_g, x.shape)
    theirs = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)

    def exact(x: jax.Array, params: dict[str, jax.Array]) -> jax.Array:
        return theirs.apply({"params": params}, x)

    def found(x: jax.Array, params: dict[str, jax.Array], dtype: str = "float32") -> jax.Array:
        return LayerNorm(dtype=dtype).apply({"params": params}, x)

    (wanted, wanted_back), (y, back) = (jax.vjp(f, x, params) for f in (exact, found))
    np.testing.assert_allclose(y, wanted, rtol=1e-6, atol=1e-6)
    for a, b in zip(*(jax.tree.leaves(f(g)) for f in (back, wanted_back)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    half = found(x, params, "bfloat16")
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, y.astype("bfloat16"))


def test_layer_norm_of_equal_numbers_has_a_finite_gradient() -> None:
    params = {"scale": jnp.ones(4), "bias": jnp.zeros(4)}
    y, back = jax.vjp(lambda x: LayerNorm().apply({"params": params}, x), jnp.full((1, 4), 3.0))
    np.testing.assert_array_equal(y, np.zeros((1, 4)))
    assert np.isfinite(back(jnp.arange(4.0)[None])[0]).all()
