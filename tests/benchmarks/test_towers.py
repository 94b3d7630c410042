"""Embedding a set of mixed sizes bucket by bucket, in the order of the set."""

from pathlib import Path

import jax
import numpy as np

from benchmarks import towers
from configs import cpcp
from xtalnet_jax import tasks
from xtalnet_jax.data.examples import gather
from xtalnet_jax.data.fixtures import load_set
from xtalnet_jax.pretrained.safetensors_io import save_safetensors


def test_vectors_come_in_the_order_of_the_set(tmp_path: Path) -> None:
    config, packed = cpcp.get_config("smoke,reflections"), load_set("textbook")
    example = gather(packed, np.arange(packed.num_crystals), int(packed.num_atoms.max()))
    params = tasks.cpcp_task(config).init(jax.random.key(0), example)
    save_safetensors(tmp_path / "weights.safetensors", params, config.to_dict())
    patterns, crystals = towers.embed(str(tmp_path), packed)
    whole = tasks.make_embedder(config).crystals(params, example.crystals)
    assert len(np.unique(packed.num_atoms)) > 1
    np.testing.assert_allclose(crystals, whole, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(patterns, axis=1), 1.0, atol=1e-5)
    swapped = towers.embed(str(tmp_path), packed.select(np.arange(packed.num_crystals)[::-1]))[0]
    np.testing.assert_allclose(swapped[::-1], patterns, atol=1e-5)
