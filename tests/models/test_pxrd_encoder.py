"""The pattern encoder: what it must see, and what it must not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.common import stir
from xtalnet_jax.models.pxrd_encoder import PXRDEncoder
from xtalnet_jax.pxrd.pattern import PeakBatch

SMALL = {"width": 16, "ffn": 32, "heads": 4, "layers": 1, "num_freqs": 64}
FORMS = ("table", "fourier")


def _peaks(form, n_graph=3, n_peak=6):
    keys = jax.random.split(jax.random.key(0), 2)
    mask = jnp.arange(n_peak)[None] < jnp.array([6, 4, 0])[:, None]
    if form == "table":
        position = jax.random.randint(keys[0], mask.shape, 1, 2048)
    else:
        position = jax.random.uniform(keys[0], mask.shape, minval=0.03, maxval=1.0)
    measured = jnp.tile(jnp.array([[0.05, 0.9]]), (n_graph, 1))
    intensity = jax.random.uniform(keys[1], mask.shape, minval=0.01)
    return PeakBatch(jnp.where(mask, position, 0), jnp.where(mask, intensity, 0), mask, measured)


@pytest.fixture(scope="module", params=FORMS)
def encoder(request):
    model, peaks = PXRDEncoder(position=request.param, **SMALL), _peaks(request.param)
    params = jax.jit(model.init)(jax.random.key(1), peaks)
    # Larger weights than at the start, so that every path through the network matters.
    params = stir(params, 0.2)
    return request.param, jax.jit(model.apply), params, peaks


@functools.partial(jax.jit, static_argnums=0)
def _outputs_and_gradient(apply, params, peaks):
    def scalar(params, intensity):
        pooled, tokens, _ = apply(params, peaks._replace(intensity=intensity))
        seen = jnp.where(peaks.mask[..., None], jnp.cos(tokens), 0.0)
        return jnp.sin(pooled).sum() + seen.sum()

    return apply(params, peaks), jax.grad(scalar, (0, 1))(params, peaks.intensity)


def test_padding_changes_nothing(encoder):
    _, apply, params, peaks = encoder
    wide = PeakBatch(
        jnp.pad(peaks.position, ((0, 1), (0, 3)), constant_values=1),
        jnp.pad(peaks.intensity, ((0, 1), (0, 3)), constant_values=0.5),
        jnp.pad(peaks.mask, ((0, 1), (0, 3))),
        jnp.pad(peaks.measured, ((0, 1), (0, 0))),
    )
    (pooled, tokens, _), (by_params, by_intensity) = _outputs_and_gradient(apply, params, peaks)
    ours, (by_params_wide, by_intensity_wide) = _outputs_and_gradient(apply, params, wide)
    np.testing.assert_allclose(ours[0][:3], pooled, atol=1e-5)
    np.testing.assert_allclose(ours[1][:3, :6], tokens, atol=1e-5)
    assert not ours[1][~wide.mask].any()
    np.testing.assert_allclose(by_intensity_wide[:3, :6], by_intensity, atol=2e-5)
    assert not by_intensity_wide[~wide.mask].any()
    del by_params_wide["params"]["pattern_token"], by_params["params"]["pattern_token"]
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(by_params_wide))


def test_parameter_gradients_ignore_padded_peaks(encoder):
    _, apply, params, peaks = encoder
    wide = PeakBatch(
        *(jnp.pad(a, ((0, 0), (0, 2)), constant_values=a.dtype.type(0)) for a in peaks[:3]),
        peaks.measured,
    )
    wide = wide._replace(intensity=jnp.where(wide.mask, wide.intensity, 0.7))
    ours, theirs = (_outputs_and_gradient(apply, params, p)[1][0] for p in (wide, peaks))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(b).max()) + 1e-5)


def test_order_of_peaks_does_not_matter(encoder):
    _, apply, params, peaks = encoder
    order = jnp.array([5, 2, 0, 3, 1, 4])
    shuffled = PeakBatch(*(a[:, order] for a in peaks[:3]), peaks.measured)
    (pooled, tokens, _), ours = apply(params, peaks), apply(params, shuffled)
    np.testing.assert_allclose(ours[0], pooled, atol=1e-5)
    np.testing.assert_allclose(ours[1], tokens[:, order], atol=1e-5)


def test_position_and_intensity_matter(encoder):
    form, apply, params, peaks = encoder
    pooled = apply(params, peaks).pooled
    step = 1 if form == "table" else 2.3e-4  # one point of the 0.02-degree grid
    moved = peaks._replace(position=peaks.position.at[0, 0].add(step))
    weaker = peaks._replace(intensity=peaks.intensity.at[0, 0].mul(0.5))
    for other in (moved, weaker):
        change = jnp.abs(apply(params, other)[0] - pooled).max(-1)
        assert change[0] > 1e-4
        assert not change[1:].any()


def test_measured_range_matters_for_continuous_positions(encoder):
    form, apply, params, peaks = encoder
    other = peaks._replace(measured=peaks.measured.at[0, 1].set(1.2))
    change = jnp.abs(apply(params, other)[0] - apply(params, peaks)[0]).max(-1)
    assert (change[0] > 1e-3) == (form == "fourier")
    assert not change[1:].any()


def test_dropout_only_in_training(encoder):
    form, apply, params, peaks = encoder
    model = PXRDEncoder(position=form, dropout=0.5, **SMALL)
    quiet = apply(params, peaks).pooled

    @jax.jit
    def noise(key):
        return model.apply(params, peaks, True, rngs={"dropout": key})[0]

    np.testing.assert_allclose(jax.jit(model.apply)(params, peaks)[0], quiet, atol=1e-5)
    noisy = [noise(jax.random.key(k)) for k in (0, 0, 1)]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert jnp.abs(noisy[0] - noisy[2]).max() > 1e-2


def test_remat_and_half_precision(encoder):
    form, apply, params, peaks = encoder
    expected = apply(params, peaks).pooled
    again = jax.jit(PXRDEncoder(position=form, remat=True, **SMALL).apply)(params, peaks)[0]
    np.testing.assert_allclose(again, expected, atol=1e-5)
    half = jax.jit(PXRDEncoder(position=form, dtype="bfloat16", **SMALL).apply)(params, peaks)[0]
    assert half.dtype == jnp.float32
    assert 0 < jnp.abs(half - expected).max() < 0.2


@functools.partial(jax.jit, static_argnums=0)
def _training_outputs_and_gradient(apply, params, peaks):
    def scalar(params, intensity):
        out = apply(params, peaks._replace(intensity=intensity))
        return jnp.sin(out.pooled).sum() + jnp.cos(out.tokens).sum()

    return apply(params, peaks), jax.grad(scalar, (0, 1))(params, peaks.intensity)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("front", [False, True])
def test_front_token_and_packing_change_no_number(remat, front):
    """10 of 18 peaks are real: with room for 3.4 of each pattern, 11 rows, all are computed."""
    small = {**SMALL, "layers": 2, "position": "fourier", "dropout": 0.0, "remat": remat}
    peaks = _peaks("fourier")
    plain, packed = PXRDEncoder(**small), PXRDEncoder(**small, room=3.4)
    params = stir(jax.jit(plain.init)(jax.random.key(1), peaks), 0.2)

    def call(model, **options):
        def outputs(params, peaks):
            features = model.apply(params, peaks, **options)
            tokens = jnp.zeros(()) if features.tokens is None else features.tokens
            return features._replace(tokens=tokens)

        return _training_outputs_and_gradient(outputs, params, peaks)

    expected, expected_gradient = call(plain)
    found, gradient = call(packed, train=True, front=front)
    np.testing.assert_allclose(found.pooled, expected.pooled, atol=2e-6)
    np.testing.assert_array_equal(found.mask, expected.mask)
    if front:

        def pooled_only(params, peaks):
            features = plain.apply(params, peaks)
            return features._replace(tokens=jnp.zeros(()))

        expected_gradient = _training_outputs_and_gradient(pooled_only, params, peaks)[1]
    else:
        np.testing.assert_allclose(found.tokens, expected.tokens, atol=2e-6)
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient)):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * float(jnp.abs(theirs).max()) + 1e-6)


def test_a_batch_without_room_loses_its_weakest_peaks_and_only_in_training():
    small = {**SMALL, "position": "fourier", "dropout": 0.0}
    peaks = _peaks("fourier")
    plain, packed = PXRDEncoder(**small), PXRDEncoder(**small, room=7 / 3)
    params = stir(jax.jit(plain.init)(jax.random.key(1), peaks), 0.2)
    least = np.sort(peaks.intensity[peaks.mask])[-7]
    strong = peaks.mask & (peaks.intensity >= least)
    assert strong.sum() == 7 < peaks.mask.sum() == 10
    expected = plain.apply(params, peaks._replace(mask=strong))
    found = packed.apply(params, peaks, train=True)
    np.testing.assert_array_equal(found.mask, strong)
    np.testing.assert_allclose(found.pooled, expected.pooled, atol=2e-6)
    np.testing.assert_allclose(found.tokens, expected.tokens, atol=2e-6)
    everything = packed.apply(params, peaks)
    np.testing.assert_allclose(everything.pooled, plain.apply(params, peaks).pooled, atol=2e-6)


def test_frozen_is_training_without_dropout():
    model = PXRDEncoder(position="fourier", dropout=0.5, **SMALL)
    peaks = _peaks("fourier")
    params = jax.jit(model.init)(jax.random.key(1), peaks)
    frozen = model.apply(params, peaks, True, frozen=True)
    np.testing.assert_array_equal(frozen.pooled, model.apply(params, peaks).pooled)


def test_unknown_form():
    with pytest.raises(ValueError, match='expected "table" or "fourier"'):
        PXRDEncoder(position="angle", **SMALL).init(jax.random.key(0), _peaks("table"))


def test_negative_room_is_refused():
    with pytest.raises(ValueError, match=r"room is -1\.0, expected peaks per pattern"):
        PXRDEncoder(position="fourier", room=-1.0, **SMALL).init(
            jax.random.key(0), _peaks("fourier")
        )
