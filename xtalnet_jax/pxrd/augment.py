"""What a diffractometer and a peak finder would see of instrument-free powder lines (device side).

`peaks_from_lines` is the whole way from `Lines` to `PeakBatch`: draw an instrument (`effects`),
place the lines on a 2-theta grid, broaden, add counting noise, find the peaks again. It is pure,
works per pattern (the key of a pattern does not depend on its neighbours) and runs inside the
training step, so every epoch sees fresh experimental effects. The host path for real data is
`peaks`.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from xtalnet_jax.pxrd.effects import Effects, Instrument, draw_instrument, require_key, uniform
from xtalnet_jax.pxrd.pattern import Lines, PeakBatch
from xtalnet_jax.pxrd.peaks import SMOOTHING, SMOOTHING_GAIN, find_maxima
from xtalnet_jax.types import Array, Key

__all__ = ["Effects", "peaks_from_lines"]

_MARGIN = 32  # bins beyond both ends of the grid whose lines still send tails into it


def _sticks(
    key: Key[Array, ""] | None,
    inv_d: Array,
    strength: Array,
    instrument: Instrument,
    effects: Effects,
) -> tuple[Array, Array]:
    """Apparent 2-theta (degrees) and intensity of every line, foreign and K-alpha2 lines included.

    Intensity is strength * exp(-2 B s^2) * LP, LP = (1 + cos^2 2theta)/(sin^2 theta cos theta).
    """
    if effects.texture != (0.0, 0.0):
        key, key_texture = jax.random.split(require_key(key, "texture"))
        strength = strength * jnp.exp(
            instrument.texture * jax.random.normal(key_texture, strength.shape, strength.dtype)
        )
    strength = strength * jnp.exp(-instrument.b_factor * inv_d**2 / 2)  # s = 1 / (2 d)

    def lp_intensity(inv_d: Array, strength: Array, wavelength: Array) -> tuple[Array, Array]:
        sine = inv_d * wavelength / 2
        reachable = (inv_d > 0) & (sine < 0.999)
        sine = jnp.where(reachable, sine, 0.5)
        cos2 = 1 - sine**2
        lp = (1 + (1 - 2 * sine**2) ** 2) / (sine**2 * jnp.sqrt(cos2))
        two_theta = 2 * jnp.rad2deg(jnp.arcsin(sine))
        apparent = two_theta + instrument.zero_shift + instrument.displacement * jnp.sqrt(cos2)
        return apparent, jnp.where(reachable, strength * lp, 0.0)

    split = any(splitting > 0 for _, splitting, _ in effects.radiations)
    weight2 = jnp.where(instrument.splitting > 0, 1 / 3, 0.0) if split else 0.0
    first = instrument.wavelength * (1 - instrument.splitting / 3)
    two_theta, intensity = lp_intensity(inv_d, strength * (1 - weight2), first)
    if effects.num_impurity:
        key, key_place, key_size = jax.random.split(require_key(key, "impurities"), 3)
        shape = (effects.num_impurity,)
        own = ((two_theta > instrument.start) & (two_theta < instrument.end)) * intensity
        place = jax.random.uniform(key_place, shape, inv_d.dtype)
        size = jax.random.uniform(key_size, shape, inv_d.dtype) ** 2
        foreign = instrument.start + (instrument.end - instrument.start) * place
        two_theta = jnp.concatenate([two_theta, foreign])
        intensity = jnp.concatenate([intensity, own.max() * instrument.impurity * size])
    if split:
        second = instrument.wavelength * (1 + 2 * instrument.splitting / 3)
        two_theta2, intensity2 = lp_intensity(inv_d, strength * weight2, second)
        two_theta = jnp.concatenate([two_theta, two_theta2])
        intensity = jnp.concatenate([intensity, intensity2])
    return two_theta, intensity


def _fft_length(num_bins: int) -> int:
    """Smallest even length of factors 2, 3 and 5 that leaves room for margins and tails."""
    length = int(1.12 * num_bins) + 2 * _MARGIN
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1 and length % 2 == 0:
            return length
        length += 1


def _line_transform(frequency: Array, fwhm: Array, lorentzian: Array) -> Array:
    """Fourier transform of a unit-area pseudo-Voigt; ``frequency`` in cycles per unit of ``fwhm``.

    The first aliases are added, so that the sampled line is positive even two bins wide.
    """

    def one(f: Array) -> Array:
        x = jnp.pi * fwhm * jnp.abs(f)
        return lorentzian * jnp.exp(-x) + (1 - lorentzian) * jnp.exp(-(x**2) / (4 * jnp.log(2.0)))

    return one(frequency) + one(frequency - 1) + one(frequency + 1)


def _profile(two_theta: Array, intensity: Array, instrument: Instrument, num_bins: int) -> Array:
    """Broadened pattern [num_bins] on the grid from ``start`` to ``end``, its maximum is 1.

    Lines are placed with cubic B-spline weights (smooth in the position) in two histograms, one
    broadened by the width at the first angle, one by that at the last; a line is shared between
    them by its angle.
    """
    step = (instrument.end - instrument.start) / (num_bins - 1)
    length = _fft_length(num_bins)
    place = (two_theta - instrument.start) / step
    inside = (place > -_MARGIN + 2) & (place < num_bins + _MARGIN - 2)
    place = jnp.where(inside, place, 0.0)
    left = jnp.floor(place)
    t = place - left
    spline = jnp.stack(
        [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], -1
    )
    share = jnp.clip(place / (num_bins - 1), 0.0, 1.0)
    shared = jnp.where(inside, intensity / 6, 0.0)[:, None] * jnp.stack([1 - share, share], -1)
    index = left.astype(jnp.int32)[:, None] + jnp.arange(-1, 3)[None] + _MARGIN
    histogram = jnp.zeros((length, 2), intensity.dtype)
    histogram = histogram.at[index].add(spline[:, :, None] * shared[:, None, :])
    frequency = jnp.fft.rfftfreq(length).astype(intensity.dtype)
    widths = instrument.fwhm / step * jnp.stack([jnp.ones_like(step), instrument.widening])
    transform = _line_transform(frequency[:, None], widths[None], instrument.lorentzian)
    spectrum = (jnp.fft.rfft(histogram, axis=0) * transform).sum(-1)
    profile = jnp.fft.irfft(spectrum, length)[_MARGIN : _MARGIN + num_bins]
    highest = profile.max()
    return profile / jnp.where(highest > 0, highest, 1.0)


def _counted(
    key: Key[Array, ""] | None, profile: Array, instrument: Instrument, effects: Effects
) -> tuple[Array, Array]:
    """Profile after counting, background subtraction and smoothing, and its standard noise.

    With N counts at the maximum a bin of relative height y has variance (y + background) / N
    (Gaussian limit of Poisson). Nothing is done if the effects are free of noise.
    """
    if effects.noise == (0.0, 0.0):
        return profile, jnp.zeros_like(profile)
    key_count, key_period, key_phase = jax.random.split(require_key(key, "noise"), 3)
    dtype = profile.dtype
    x = jnp.linspace(0.0, 1.0, len(profile), dtype=dtype)
    level = instrument.background * (0.6 + 0.4 * jnp.exp(-4 * x))  # air scatter falls with angle
    sigma = instrument.noise * jnp.sqrt(jnp.maximum(profile, 0.0) + level)
    period = jax.random.uniform(key_period, (2, 1), dtype, 1.0, 8.0)
    phase = jax.random.uniform(key_phase, (2, 1), dtype, 0.0, 2 * jnp.pi)
    wave = jnp.cos(2 * jnp.pi * period * x[None] + phase).mean(0)
    counted = profile + sigma * jax.random.normal(key_count, profile.shape, dtype)
    counted = counted + instrument.residue * level * wave
    smooth = jnp.convolve(jnp.pad(counted, 2, mode="edge"), jnp.asarray(SMOOTHING, dtype), "valid")
    keep = instrument.noise > 0
    return jnp.where(keep, smooth, profile), SMOOTHING_GAIN * sigma


def _one_pattern(
    key: Key[Array, ""] | None, inv_d: Array, strength: Array, effects: Effects, num_peaks: int
) -> PeakBatch:
    keys = (None,) * 4 if key is None else jax.random.split(key, 4)
    instrument = draw_instrument(keys[0], effects)
    if effects.clean_fraction > 0:
        calm = draw_instrument(None, Effects.clean())
        stay = uniform(keys[1], (0.0, 1.0)) < effects.clean_fraction
        instrument = jax.tree.map(lambda a, b: jnp.where(stay, a, b), calm, instrument)
    instrument = jax.tree.map(lambda x: x.astype(inv_d.dtype), instrument)
    two_theta, intensity = _sticks(keys[2], inv_d, strength, instrument, effects)
    profile = _profile(two_theta, intensity, instrument, effects.num_bins)
    profile, sigma = _counted(keys[3], profile, instrument, effects)
    threshold = jnp.maximum(effects.min_prominence * profile.max(), effects.num_sigma * sigma)
    place, height, mask = find_maxima(profile, threshold, num_peaks)
    mask = mask & (strength > 0).any()
    step = (instrument.end - instrument.start) / (effects.num_bins - 1)

    def to_inv_d(angle: Array) -> Array:
        return 2 * jnp.sin(jnp.deg2rad(angle / 2)) / instrument.wavelength

    strongest = jnp.where(mask, height, 0.0).max()
    relative = height / jnp.where(strongest > 0, strongest, 1.0)
    return PeakBatch(
        position=jnp.where(mask, to_inv_d(instrument.start + step * place), 0.0),
        intensity=jnp.where(mask, relative, 0.0),
        mask=mask,
        measured=to_inv_d(jnp.stack([instrument.start, instrument.end])),
    )


def peaks_from_lines(
    key: Key[Array, ""] | None, lines: Lines, effects: Effects, num_peaks: int
) -> PeakBatch:
    """Measure powder lines and find the peaks again.

    Args:
        key: random key; may be None if nothing in ``effects`` is random.
        lines: 1/d (1/angstrom) and strength, [n_graph, n_line].
        effects: how the patterns are measured (static).
        num_peaks: size of the peak axis; of more peaks the strongest are kept (static).

    Returns:
        Peaks ordered by falling height of their highest bin; the row of a crystal without
        lines is fully masked.

    Raises:
        ValueError: the effects are random and ``key`` is None.
    """
    lines = Lines(*map(jnp.asarray, lines))
    return _peaks_from_lines(key, lines, effects, num_peaks)


@partial(jax.jit, static_argnums=(2, 3))
def _peaks_from_lines(
    key: Key[Array, ""] | None, lines: Lines, effects: Effects, num_peaks: int
) -> PeakBatch:
    keys = None if key is None else jax.random.split(key, lines.inv_d.shape[0])
    one = partial(_one_pattern, effects=effects, num_peaks=num_peaks)
    return jax.vmap(one, (None if keys is None else 0, 0, 0))(keys, *lines)
