"""Batches: pure in the step, every crystal once an epoch, static shapes, honest padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.data import cases
from xtalnet_jax.data import packed as packed_sets
from xtalnet_jax.data.batches import (
    BucketedBatches,
    EncodedBatches,
    MixedBatches,
    ResidentBatches,
    buckets_for,
    count_crystals,
)
from xtalnet_jax.data.examples import Example, gather
from xtalnet_jax.training.task import BatchSource, ResidentSource

NUM = 53


@pytest.fixture(scope="module")
def packed():
    rng = np.random.default_rng(0)
    some = cases.crystals(NUM, max_atoms=20)
    lines = rng.random((2, NUM, 7)).astype(np.float32)
    return packed_sets.from_crystals([f"c{i}" for i in range(NUM)], some, tuple(lines))


def epoch_of(batches, epoch=0):
    steps = range(batches.num_steps_per_epoch)
    return [batches.batch(epoch * batches.num_steps_per_epoch + s) for s in steps]


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("num_devices", [1, 3])
@pytest.mark.parametrize("epoch", [0, 2])
def test_every_crystal_once_an_epoch(packed, shuffle, num_devices, epoch):
    batches = BucketedBatches(packed, batch_sizes=4, shuffle=shuffle, num_devices=num_devices)
    index = np.concatenate([b.index for b in epoch_of(batches, epoch)])
    np.testing.assert_array_equal(np.sort(index[index >= 0]), np.arange(NUM))


def test_batch_is_a_pure_function_of_the_step(packed):
    first, second = (BucketedBatches(packed, batch_sizes=4, seed=5) for _ in range(2))
    steps = range(3 * first.num_steps_per_epoch)
    forward = [first.batch(s) for s in steps]
    for step in reversed(steps):  # another object, another order, epochs mixed
        assert_equal(second.batch(step), forward[step])
        assert_equal(second.batch((7 * step) % len(steps)), forward[(7 * step) % len(steps)])


def order(batches, epoch):
    return np.concatenate([b.index for b in epoch_of(batches, epoch)])


def test_epochs_and_seeds_differ_only_where_shuffled(packed):
    batches = BucketedBatches(packed, batch_sizes=4, seed=1)
    other = BucketedBatches(packed, batch_sizes=4, seed=2)
    assert not np.array_equal(order(batches, 0), order(batches, 1))
    assert not np.array_equal(order(batches, 0), order(other, 0))
    fixed = BucketedBatches(packed, batch_sizes=4, shuffle=False)
    np.testing.assert_array_equal(order(fixed, 0), order(fixed, 3))
    real = [i for i in order(fixed, 0) if i >= 0]
    buckets = -(-packed.num_atoms[real] // 4)
    assert real == sorted(real, key=lambda i: (-(-packed.num_atoms[i] // 4), i))
    assert (np.diff(buckets) >= 0).all()


def test_content_padding_and_shapes(packed):
    batches = BucketedBatches(packed, batch_sizes={4: 8, 8: 4, 12: 3, 16: 2, 20: 2})
    sizes = {4: 8, 8: 4, 12: 3, 16: 2, 20: 2}
    for batch in epoch_of(batches):
        crystals, lines, index, peaks, group_sizes, pattern = batch
        assert group_sizes is None  # one size for all
        assert peaks is None  # this set came without patterns of its own
        assert pattern is None  # nobody encoded any
        n_graph, n_node = crystals.atomic_numbers.shape
        assert sizes[n_node] == n_graph
        assert crystals.atomic_numbers.dtype == np.int32
        assert index.dtype == np.int32
        for row, k in enumerate(index):
            if k < 0:
                assert not crystals.atomic_numbers[row].any()
                assert not crystals.frac_coords[row].any()
                np.testing.assert_array_equal(crystals.lattice[row], np.eye(3))
                assert not lines.inv_d[row].any()
                assert not lines.strength[row].any()
                continue
            own, n = packed.crystal(int(k)), packed.num_atoms[k]
            assert n_node - 4 < n <= n_node
            np.testing.assert_array_equal(crystals.atomic_numbers[row, :n], own.atomic_numbers)
            np.testing.assert_array_equal(crystals.frac_coords[row, :n], own.frac_coords)
            assert not crystals.atomic_numbers[row, n:].any()
            assert not crystals.frac_coords[row, n:].any()
            np.testing.assert_array_equal(crystals.lattice[row], own.lattice)
            np.testing.assert_array_equal(lines.inv_d[row], packed.lines_inv_d[k])
            np.testing.assert_array_equal(lines.strength[row], packed.lines_strength[k])


def test_all_devices_get_the_same_shape_and_fair_shares(packed):
    batches = BucketedBatches(packed, batch_sizes=4, num_devices=3)
    for batch in epoch_of(batches):
        assert batch.index.shape == (12,)
        real = (batch.index.reshape(3, 4) >= 0).sum(1)
        assert real.max() - real.min() <= 1
        assert count_crystals(batch) == real.sum()


def test_batch_size_follows_the_budget_of_pairs(packed):
    batches = BucketedBatches(packed, budget_pairs=1000, batch_size_range=(3, 20))
    assert dict(zip(batches.num_nodes, batches.batch_sizes)) == {4: 20, 8: 15, 12: 6, 16: 3, 20: 3}


def test_empty_buckets_do_not_count(packed):
    small = packed.select(packed.num_atoms <= 7)
    batches = BucketedBatches(small, (2, 7, 90), batch_sizes=64)
    assert batches.num_nodes == (2, 7)
    assert batches.num_steps_per_epoch == 2


def test_resident_batches_are_the_same_batches(packed):
    batches = BucketedBatches(packed, batch_sizes=4)
    resident = ResidentBatches(batches)
    assert isinstance(resident, ResidentSource)
    assert isinstance(batches, BatchSource)
    assert not isinstance(batches, ResidentSource)
    on_device = jax.device_put(resident.resident)
    fetch = jax.jit(resident.gather)
    for step in range(batches.num_steps_per_epoch):
        rows, expected = resident.batch(step), batches.batch(step)
        assert count_crystals(rows) == count_crystals(expected)
        found = fetch(on_device, rows)
        assert isinstance(found, Example)
        assert_equal(found, expected)
    assert fetch._cache_size() == len(batches.num_nodes)  # one compilation per bucket


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("num_devices", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 9, 500])
def test_mixed_batches_hold_every_crystal_once_an_epoch(packed, shuffle, num_devices, batch_size):
    options = {"shuffle": shuffle, "num_devices": num_devices, "batch_size": batch_size}
    batches = MixedBatches(packed, **options)
    for epoch in (0, 2):
        index = order(batches, epoch)
        np.testing.assert_array_equal(np.sort(index[index >= 0]), np.arange(NUM))


def test_mixed_batches_have_one_shape_and_sorted_rows_on_every_device(packed):
    batches = MixedBatches(packed, batch_size=9, num_devices=2)
    assert batches.num_steps_per_epoch == round(NUM / 18)
    assert 9 <= sum(batches.sizes.num_rows) <= 9 + len(batches.num_nodes)
    for batch in epoch_of(batches):
        assert batch.sizes == batches.sizes
        assert batch.crystals.atomic_numbers.shape == (batches.shapes()[0][1], 20)
        for device in np.split(batch.crystals.atomic_numbers, 2):
            count = (device > 0).sum(1)
            for rows, nodes in batches.sizes.groups(len(device)):
                real = count[rows][count[rows] > 0]
                assert ((real > nodes - 4) & (real <= nodes)).all()


def test_mixed_batches_give_all_devices_fair_shares(packed):
    batches = MixedBatches(packed, batch_size=5, num_devices=3)
    real = [(b.index.reshape(3, -1) >= 0).sum(1) for b in epoch_of(batches)]
    assert np.max(real) - np.min(real) <= 1


def test_mixed_batches_are_a_pure_function_of_the_step(packed):
    first, second = (MixedBatches(packed, batch_size=9, seed=5) for _ in range(2))
    for step in (7, 0, 3, 7):
        assert_equal(first.batch(step), second.batch(step))
    assert not np.array_equal(order(first, 0), order(first, 1))
    assert not np.array_equal(order(first, 0), order(MixedBatches(packed, batch_size=9), 0))


def test_mixed_batches_on_the_device_are_the_same(packed):
    batches = MixedBatches(packed, batch_size=9)
    resident = ResidentBatches(batches)
    assert isinstance(batches, BatchSource)
    fetch = jax.jit(resident.gather)
    for step in range(batches.num_steps_per_epoch):
        found = fetch(resident.resident, resident.batch(step))
        assert_equal(found, batches.batch(step))
        assert count_crystals(resident.batch(step)) == count_crystals(batches.batch(step))
    assert fetch._cache_size() == 1
    kind = resident.kinds()[0]
    assert {k: v.shape for k, v in kind.items()} == {
        k: v.shape for k, v in resident.batch(0).items()
    }


def test_mixed_batches_keep_to_the_budget_of_pairs(packed):
    batches = MixedBatches(packed, budget_pairs=2000, batch_size_range=(1, 64))
    sizes = batches.sizes
    pairs = sum(rows * n**2 for rows, n in zip(sizes.num_rows, sizes.num_nodes))
    assert 1000 < pairs < 2000 + sum(n**2 for n in sizes.num_nodes)
    with pytest.raises(ValueError, match="at least one crystal, got batch size 0"):
        MixedBatches(packed, batch_size=0)
    with pytest.raises(ValueError, match="more atoms than the largest bucket 8"):
        MixedBatches(packed, (4, 8))


def test_gather_takes_any_leading_axes(packed):
    index = np.array([[0, -1], [5, 3]], np.int32)
    found = gather(packed, index, 20)
    assert found.crystals.frac_coords.shape == (2, 2, 20, 3)
    assert_equal(jax.tree.map(lambda x: x[1], found), gather(packed, index[1], 20))


def test_gather_refuses_to_cut_a_crystal(packed):
    with pytest.raises(ValueError, match="more than the 2 asked for"):
        gather(packed, np.array([int(packed.num_atoms.argmax())]), 2)


def test_buckets_hold_similar_shares(packed):
    edges = buckets_for(packed, num_buckets=3)
    assert edges[-1] >= packed.num_atoms.max()
    assert all(e % 4 == 0 for e in edges)
    shares = np.bincount(np.searchsorted(edges, packed.num_atoms), minlength=len(edges)) / NUM
    assert shares.min() > 0.15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_atoms_buckets": (4, 8)}, "more atoms than the largest bucket 8 .*max_atoms=8"),
        ({"num_atoms_buckets": (8, 4, 20)}, "must rise"),
        ({"num_atoms_buckets": ()}, "must rise"),
        ({"batch_sizes": 0}, "at least one crystal"),
        ({"batch_sizes": {4: 2}}, r"no entry for the buckets \[8, 12, 16, 20\]"),
        ({"num_devices": 0}, "num_devices must be at least 1"),
    ],
)
def test_bad_arguments(packed, options, message):
    with pytest.raises(ValueError, match=message):
        BucketedBatches(packed, **options)


def test_bad_step_and_empty_set(packed):
    with pytest.raises(ValueError, match="at least 0, got -1"):
        BucketedBatches(packed).batch(-1)
    with pytest.raises(ValueError, match="empty"):
        BucketedBatches(packed.select(np.zeros(0, int)))


def test_own_peaks_travel_with_their_crystals(packed):
    n = packed.num_crystals
    position = np.linspace(0.1, 0.9, n)[:, None] * np.array([[1.0, 1.1, 0.0]])
    own = packed._replace(
        peaks_inv_d=position.astype(np.float32),
        peaks_strength=np.tile(np.float32([[1.0, 0.5, 0.0]]), (n, 1)),
        measured=np.tile(np.float32([[0.05, 0.9]]), (n, 1)),
    )
    batches = BucketedBatches(own, batch_sizes=4)
    resident = ResidentBatches(batches)
    for step in range(batches.num_steps_per_epoch):
        batch = batches.batch(step)
        asked = (resident.resident, resident.batch(step))
        on_device = resident.gather(*jax.tree.map(jnp.asarray, asked))
        for mine, theirs in zip(batch.peaks, on_device.peaks):
            np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))
        real = batch.index >= 0
        np.testing.assert_array_equal(
            batch.peaks.position[real], own.peaks_inv_d[batch.index[real]]
        )
        np.testing.assert_array_equal(batch.peaks.mask.sum(-1), 2 * real)


@pytest.mark.parametrize("kind", [BucketedBatches, MixedBatches])
def test_what_is_known_of_each_pattern_comes_with_its_crystal(packed, kind):
    patterns = np.random.default_rng(1).normal(size=(NUM, 3)).astype(np.float32)
    batches = kind(packed, budget_pairs=800)
    encoded, resident = EncodedBatches(batches, patterns), ResidentBatches(batches, patterns)
    for step in range(batches.num_steps_per_epoch):
        batch = encoded.batch(step)
        real = batch.index >= 0
        np.testing.assert_array_equal(batch.pattern[real], patterns[batch.index[real]])
        assert_equal(batch._replace(pattern=None), batches.batch(step))
        on_device = jax.tree.map(jnp.asarray, (resident.resident, resident.batch(step)))
        taken = resident.gather(*on_device)
        np.testing.assert_array_equal(taken.pattern[real], batch.pattern[real])
