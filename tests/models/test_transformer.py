"""What the encoder holds for its gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from xtalnet_jax.models.transformer import Encoder


def _held(num_layers: int) -> float:
    """Memory of the gradient's intermediate results, in arrays of one number per row and width."""
    width, count = 32, jnp.tile(jnp.array([24, 20, 16, 12, 8]), 64)
    mask, num_rows = jnp.arange(24)[None] < count[:, None], int(count.sum())
    model, x = Encoder(4 * width, 4, num_layers, dropout=0.1), jnp.ones((*mask.shape, width))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), x, mask, False))

    def loss(params: dict, x: jax.Array) -> jax.Array:
        rngs = {"dropout": jax.random.key(1)}
        return model.apply(params, x, mask, True, num_rows, rngs=rngs).sum()

    program = jax.jit(jax.grad(loss)).lower(params, x).compile()
    return program.memory_analysis().temp_size_in_bytes / (4 * num_rows * width)


def test_a_layer_holds_the_inputs_of_its_products_and_norms_alone() -> None:
    """Twelve: of two norms, before and after; query, key, value, what they mix; four of the ffn."""
    slope = (_held(3) - _held(1)) / 2
    assert 11 < slope < 14
