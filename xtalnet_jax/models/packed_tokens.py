"""Tokens of a padded batch in consecutive rows, so that dense layers need not compute the padding.

Patterns have very different numbers of peaks (1 to over 100 where cells hold up to 20 atoms), so
that a third to a half of the tokens of a padded batch are padding. Shapes are static: there is room
for a number of rows that the caller chooses, and `strongest` makes the tokens fit.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class PackedTokens(NamedTuple):
    """Where the tokens of a batch [n_graph, n_token] are; each array is the other's inverse."""

    token: Int[Array, "n_row"]  # flat position of a row's token; n_graph * n_token for an empty row
    row: Int[Array, "n_graph n_token"]  # row of a token; n_row where it has none


def packed_tokens(mask: Bool[Array, "n_graph n_token"], num_rows: int) -> PackedTokens:
    """Give the real tokens the first rows, in order; those without room are left out."""
    flat = mask.reshape(-1)
    (token,) = jnp.nonzero(flat, size=num_rows, fill_value=flat.size)
    place = jnp.cumsum(flat) - 1
    row = jnp.where(flat & (place < num_rows), place, num_rows)
    return PackedTokens(token, row.reshape(mask.shape))


def strongest(
    mask: Bool[Array, "n_graph n_peak"], intensity: Float[Array, "n_graph n_peak"], num: int
) -> Bool[Array, "n_graph n_peak"]:
    """Return the mask without the weakest peaks of the batch, of which ``num`` at most remain."""
    if mask.size <= num:
        return mask
    order = jnp.argsort(jnp.where(mask, -intensity, jnp.inf).reshape(-1))
    kept = jnp.zeros(mask.size, bool).at[order[:num]].set(True)
    return mask & kept.reshape(mask.shape)


def _rows_of(x: jax.Array, index: jax.Array) -> jax.Array:
    """``x[index]``, 0 where the index is beyond the last row."""
    return x.at[index].get(mode="fill", fill_value=0)


@jax.custom_vjp
def pack(x: Float[Array, "n_graph n_token ..."], to: PackedTokens) -> Float[Array, "n_row ..."]:
    """Rows of the tokens; an empty row is 0. Both directions are gathers (see `unpack`)."""
    return _rows_of(x.reshape(-1, *x.shape[2:]), to.token)


@jax.custom_vjp
def unpack(rows: Float[Array, "n_row ..."], to: PackedTokens) -> jax.Array:
    """Tokens [n_graph, n_token, ...] of the rows; one without a row is 0. Transpose of `pack`."""
    return _rows_of(rows, to.row)


pack.defvjp(lambda x, to: (pack(x, to), to), lambda to, g: (unpack(g, to), None))
unpack.defvjp(lambda rows, to: (unpack(rows, to), to), lambda to, g: (pack(g, to), None))
