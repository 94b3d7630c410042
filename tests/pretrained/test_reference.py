"""Reference checkpoints: every file form, what is refused, and the mapping of names."""

import os
import pickle
from collections import OrderedDict
from pathlib import PurePosixPath

import jax
import ml_dtypes
import numpy as np
import pytest

from tests.pretrained.archive import Tensor, write_archive, write_raw
from xtalnet_jax.models.ccsg import CCSG
from xtalnet_jax.models.cpcp import CPCP
from xtalnet_jax.pretrained.convert_torch import reference_config, reference_params
from xtalnet_jax.pretrained.reference import (
    load_reference,
    load_reference_checkpoint,
    read_state_dict,
)
from xtalnet_jax.pretrained.torch_archive import read_torch_archive

WIDTH, FFN, FREQS, TIME = 16, 24, 4, 8


def _state(kind="cpcp", layers=2, csp_layers=3):
    """A state_dict with the reference's names and shapes and random numbers."""
    rng = np.random.default_rng(0)
    shapes = {
        "pxrd_encoder.embed_tokens.0.weight": (WIDTH, 1),
        "pxrd_encoder.embed_tokens.0.bias": (WIDTH,),
        "pxrd_encoder.embed_tokens.1.weight": (WIDTH,),
        "pxrd_encoder.embed_tokens.1.bias": (WIDTH,),
        "pxrd_encoder.embed_tokens.3.weight": (WIDTH, WIDTH),
        "pxrd_encoder.embed_tokens.3.bias": (WIDTH,),
        "pxrd_encoder.vnode_encoder.weight": (1, WIDTH),
        "pxrd_encoder.embed_positions.weight": (2048, WIDTH),
    }

    def add(stem, *shape, bias=True):
        shapes[f"{stem}.weight"] = shape
        if bias:
            shapes[f"{stem}.bias"] = shape[:1]

    sentence = "pxrd_encoder.sentence_encoder"
    add(f"{sentence}.emb_layer_norm", WIDTH)
    add(f"{sentence}.final_layer_norm", WIDTH)
    for i in range(layers):
        add(f"{sentence}.layers.{i}.self_attn.in_proj", 3 * WIDTH, WIDTH)
        add(f"{sentence}.layers.{i}.self_attn.out_proj", WIDTH, WIDTH)
        add(f"{sentence}.layers.{i}.self_attn_layer_norm", WIDTH)
        add(f"{sentence}.layers.{i}.fc1", FFN, WIDTH)
        add(f"{sentence}.layers.{i}.fc2", WIDTH, FFN)
        add(f"{sentence}.layers.{i}.final_layer_norm", WIDTH)
    tower = "crystal_encoder" if kind == "cpcp" else "decoder"
    add(f"{tower}.node_embedding", 100, WIDTH, bias=False)
    for i in range(csp_layers):
        layer = f"{tower}.csp_layer_{i}"
        add(f"{layer}.edge_mlp.0", WIDTH, 2 * WIDTH + 9 + 6 * FREQS)
        add(f"{layer}.edge_mlp.2", WIDTH, WIDTH)
        add(f"{layer}.node_mlp.0", WIDTH, 2 * WIDTH)
        add(f"{layer}.node_mlp.2", WIDTH, WIDTH)
        add(f"{layer}.layer_norm", WIDTH)
    add(f"{tower}.final_layer_norm", WIDTH)
    if kind == "cpcp":
        shapes["logit_scale"] = (1,)
        add("crystal_encoder.out_node", WIDTH, WIDTH, bias=False)
    else:
        add("decoder.atom_latent_emb", WIDTH, 2 * WIDTH + TIME)
        add("decoder.coord_out", 3, WIDTH, bias=False)
        add("decoder.lattice_out", 9, WIDTH, bias=False)
        shapes["beta_scheduler.betas"] = (1001,)
        shapes["sigma_scheduler.sigmas_norm"] = (1001,)
    return {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}


def _tensors(state):
    return OrderedDict((k, Tensor(v)) for k, v in state.items())


@pytest.mark.parametrize(("kind", "model"), [("cpcp", CPCP), ("ccsg", CCSG)])
def test_parameters_fit_the_model_that_the_config_describes(kind, model):
    import jax.numpy as jnp

    from xtalnet_jax.crystals.crystal import CrystalBatch
    from xtalnet_jax.pxrd.pattern import PeakBatch

    state = _state(kind)
    config = reference_config(state)
    assert config.pop("model") == model.__name__
    assert config["encoder"] == {"width": WIDTH, "ffn": FFN, "heads": 2, "layers": 2}
    assert config["network"] == {"width": WIDTH, "layers": 3, "num_freqs": FREQS}
    peaks = PeakBatch(jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.ones((1, 2), bool), jnp.ones((1, 2)))
    batch = CrystalBatch(jnp.ones((1, 2), jnp.int32), jnp.zeros((1, 2, 3)), jnp.eye(3)[None])
    args = (batch,) if kind == "cpcp" else (*batch, jnp.ones(1))
    init = jax.eval_shape(model(**config).init, jax.random.key(0), peaks, *args)
    ours = jax.tree.map(np.shape, reference_params(state))
    assert ours == jax.tree.map(lambda a: a.shape, init)


def test_a_linear_layer_is_transposed_and_a_table_is_not():
    state = _state()
    params = reference_params(state)["params"]
    edge = params["crystal_network"]["layer_2"]["edge_0"]
    np.testing.assert_array_equal(
        edge["kernel"], state["crystal_encoder.csp_layer_2.edge_mlp.0.weight"].T
    )
    np.testing.assert_array_equal(
        params["pxrd_encoder"]["position"]["embedding"],
        state["pxrd_encoder.embed_positions.weight"],
    )
    norm = params["pxrd_encoder"]["encoder"]["layer_1"]["ffn_norm"]
    name = "pxrd_encoder.sentence_encoder.layers.1.final_layer_norm"
    np.testing.assert_array_equal(norm["scale"], state[f"{name}.weight"])
    np.testing.assert_array_equal(norm["bias"], state[f"{name}.bias"])


@pytest.mark.parametrize("form", ["npz", "pt", "ckpt", "wrapped"])
def test_every_file_form_gives_the_same(tmp_path, form):
    state = _state("ccsg")
    path = tmp_path / "weights.any"
    if form == "npz":
        with path.open("wb") as file:
            np.savez(file, **state)
    elif form == "pt":
        write_archive(path, _tensors(state))
    elif form == "ckpt":  # what Lightning adds must not disturb
        extra = {
            "epoch": 3,
            "path": PurePosixPath("a/b"),
            "kinds": {int, str},
            "order": OrderedDict(a=1),
        }
        write_archive(path, {**extra, "state_dict": _tensors(state)}, root="epoch=3")
    else:
        write_archive(path, {"model": {f"module.{k}": v for k, v in _tensors(state).items()}})
    expected, found = reference_params(state), load_reference_checkpoint(path)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert load_reference(path)[1]["time_dim"] == TIME


def test_types_and_memory_layouts(tmp_path):
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = {
        "plain": Tensor(a),
        "turned": Tensor(np.asfortranarray(a)),
        "half": Tensor(a.astype(np.float16)),
        "brain": Tensor(a.astype(ml_dtypes.bfloat16)),
        "count": Tensor(np.array(7)),
        "empty": Tensor(np.zeros((0, 3), np.float32)),
        "text": "not an array",
    }
    found = read_state_dict(write_archive(tmp_path / "w.pt", content))
    assert set(found) == set(content) - {"text"}
    for name in ("plain", "turned", "half", "brain"):
        np.testing.assert_array_equal(found[name], a)
        assert found[name].dtype == np.float32
    assert found["count"] == 7
    assert found["empty"].shape == (0, 3)


class _Attack:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("function", "args"),
    [
        (os.system, ("touch {}",)),
        (eval, ("open('{}', 'w')",)),
        (getattr, (os, "system")),
        (os.mkdir, ("{}",)),
    ],
)
def test_an_archive_that_calls_something_is_refused(tmp_path, function, args, nested):
    target = tmp_path / "touched"
    args = tuple(a.format(target) if isinstance(a, str) else a for a in args)
    attack = _Attack(function, *args) if function is not getattr else _Attack(getattr, "a", "upper")
    content = {"state_dict": {"a": [attack]}} if nested else attack
    path = write_raw(tmp_path / "evil.ckpt", pickle.dumps(content, protocol=2), [])
    with pytest.raises(ValueError, match="refused, nothing of it was run"):
        load_reference_checkpoint(path)
    assert not target.exists()


def test_bookkeeping_of_the_framework_is_inert(tmp_path):
    """Opcodes that build a torch, omegaconf or lightning object make nothing of it."""
    opcodes = (
        b"\x80\x02}(X\x01\x00\x00\x00ac"
        b"omegaconf.dictconfig\nDictConfig\n)\x81}X\x01\x00\x00\x00bK\x01sb"
        b"X\x01\x00\x00\x00cctorch.hub\nload\nX\x03\x00\x00\x00url\x85Ru."
    )
    content = read_torch_archive(write_raw(tmp_path / "a.ckpt", opcodes, []))
    assert set(content) == {"a", "c"}
    assert {type(v).__name__ for v in content.values()} == {"DictConfig", "load"}
    assert all(type(v).__bases__[0].__name__ == "_Inert" for v in content.values())


@pytest.mark.parametrize(
    ("strides", "message"),
    [((3, 2), "reaches element 7 of 6"), ((-3, 1), "impossible shape"), ((1,), "impossible shape")],
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, strides, message):
    tensor = Tensor(np.zeros((2, 3), np.float32), strides)
    with pytest.raises(ValueError, match=message):
        read_torch_archive(write_archive(tmp_path / "w.pt", {"a": tensor}))


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path):
    tensor = Tensor(np.broadcast_to(np.float32(1), (10**6, 10**6)), (0, 0))
    tensor.array = type(
        "Huge", (), {"dtype": np.dtype("f4"), "shape": (10**6,) * 2, "itemsize": 4}
    )()
    tensor.array.tobytes, tensor.array.size = lambda order: b"\0\0\0\0", 1
    with pytest.raises(ValueError, match="larger than its storage"):
        read_torch_archive(write_archive(tmp_path / "w.pt", {"a": tensor}))


@pytest.mark.parametrize("content", [b"", b"garbage" * 50])
def test_what_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "w.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="no zip archive of PyTorch"):
        load_reference_checkpoint(path)
    write_raw(path, content or b"\x80\x02", [])
    with pytest.raises(ValueError, match="damaged or no checkpoint"):
        load_reference_checkpoint(path)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_reference_checkpoint(tmp_path / "missing.ckpt")


def test_names_are_complete_and_known():
    state = _state()
    with pytest.raises(
        ValueError, match=r"1 names are not the reference's: crystal_encoder\.extra"
    ):
        reference_params({**state, "crystal_encoder.extra": np.zeros(2)})
    del state["crystal_encoder.csp_layer_1.node_mlp.2.bias"], state["logit_scale"]
    with pytest.raises(ValueError, match=r"2 weights are missing: .*csp_layer_1.*, logit_scale"):
        reference_params(state)
    with pytest.raises(ValueError, match="expected the parts of CPCP"):
        reference_config({"resnet.weight": np.zeros(2)})
