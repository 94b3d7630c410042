"""Peak list -> one feature of the pattern and one per peak (the paper's PXRD feature extractor)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from xtalnet_jax.models.embeddings import intensity_features, log_fourier
from xtalnet_jax.models.packed_tokens import strongest
from xtalnet_jax.models.transformer import Encoder, LayerNorm, bert_init
from xtalnet_jax.pxrd.pattern import PeakBatch

LENGTHS = (0.25, 1000.0)
"""Shortest and longest wave (angstrom) in the features of 1/d; see `log_fourier`."""


class PatternFeatures(NamedTuple):
    """What an encoder makes of patterns."""

    pooled: jax.Array  # [n_graph, d] the pattern as a whole
    tokens: jax.Array | None  # [n_graph, n_peak, d] its peaks, 0 where padded; None if not wanted
    mask: jax.Array  # [n_graph, n_peak] bool, which peaks were read


class PXRDEncoder(nn.Module):
    """Transformer over the peaks of a pattern, with one trainable token in front.

    Two ways to say where a peak is:

    * ``position="table"``: the reference. ``peaks.position`` is the index on the 2-theta grid and
      selects one of 2,048 trained vectors.
    * ``position="fourier"``: ``peaks.position`` is 1/d in 1/angstrom, described by ``num_freqs``
      waves, so that wavelength, range and step are free. The front token also gets the measured
      range, so that a peak that is absent differs from a peak that was not measured.

    With ``room`` > 0 a training batch has room for so many peaks per pattern on average, and no
    padding beyond these is computed; if its patterns have more together, the weakest are left out.

    Source: arXiv 2401.03862, section 4.2.
    """

    width: int = 512
    ffn: int = 2048
    heads: int = 64
    layers: int = 8
    dropout: float = 0.1
    position: str = "table"
    num_freqs: int = 64
    dtype: Any = None
    remat: bool = False
    room: float = 0.0

    @nn.compact
    def __call__(
        self,
        peaks: PeakBatch,
        train: bool = False,
        *,
        frozen: bool = False,
        front: bool = False,
    ) -> PatternFeatures:
        """Encode patterns.

        Args:
            peaks: the patterns.
            train: with dropout, and within ``room``.
            frozen: without dropout all the same.
            front: only the feature of the pattern as a whole is wanted.
        """
        table = self.position == "table"
        if not table and self.position != "fourier":
            raise ValueError(f'position is "{self.position}", expected "table" or "fourier"')
        if self.room < 0:
            raise ValueError(f"room is {self.room}, expected peaks per pattern, or 0 for all")
        peaks = jax.tree.map(jnp.asarray, peaks)
        intensity = peaks.intensity
        x = intensity[..., None] if table else intensity_features(intensity)
        x = nn.Dense(self.width, kernel_init=bert_init, name="intensity_0")(x)
        x = jax.nn.relu(LayerNorm(name="intensity_norm")(x))
        x = nn.Dense(self.width, kernel_init=bert_init, name="intensity_1")(x)
        front_token = self.param("pattern_token", bert_init, (1, self.width))
        front_token = jnp.broadcast_to(front_token, (x.shape[0], self.width)).astype(x.dtype)
        if table:
            index = jnp.round(peaks.position).astype(jnp.int32)
            x = x + nn.Embed(2048, self.width, embedding_init=bert_init, name="position")(index)
        else:
            waves = log_fourier(peaks.position, self.num_freqs, *LENGTHS)
            x = x + nn.Dense(self.width, name="position")(waves)
            measured = log_fourier(peaks.measured, 16, LENGTHS[0], 16.0)
            measured = measured.reshape(x.shape[0], -1)
            front_token = front_token + nn.Dense(self.width, name="measured")(measured)
        seen, num_rows = peaks.mask, None
        if train and self.room:
            num_peaks = math.ceil(self.room * len(seen))
            seen = strongest(seen, intensity, num_peaks)
            num_rows = num_peaks + len(seen)
        mask = jnp.pad(seen, ((0, 0), (1, 0)), constant_values=True)
        x = jnp.concatenate([front_token[:, None], x], 1)
        encoder = Encoder(
            self.ffn, self.heads, self.layers, self.dropout, self.dtype, self.remat, name="encoder"
        )
        x = encoder(x, mask, train and not frozen, num_rows, front)
        return PatternFeatures(x, None, seen) if front else PatternFeatures(x[:, 0], x[:, 1:], seen)
