"""Names and layouts of the reference's weights -> ours (facts of its state_dict, no code of it).

A linear layer of PyTorch is [out, in] and is transposed here; everything else keeps its numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from xtalnet_jax.types import Params

_HEAD_DIM = 8  # 64 heads at width 512; heads cannot be read off the shapes

_ENCODER = {
    "embed_tokens.0": "intensity_0",
    "embed_tokens.1": "intensity_norm",
    "embed_tokens.3": "intensity_1",
    "vnode_encoder.weight": "pattern_token",
    "embed_positions": "position",
    "sentence_encoder.emb_layer_norm": "encoder/embedding_norm",
    "sentence_encoder.final_layer_norm": "encoder/final_norm",
    "sentence_encoder.layers.#.self_attn.in_proj": "encoder/layer_#/attention/qkv",
    "sentence_encoder.layers.#.self_attn.out_proj": "encoder/layer_#/attention/out",
    "sentence_encoder.layers.#.self_attn_layer_norm": "encoder/layer_#/attention_norm",
    "sentence_encoder.layers.#.fc1": "encoder/layer_#/fc1",
    "sentence_encoder.layers.#.fc2": "encoder/layer_#/fc2",
    "sentence_encoder.layers.#.final_layer_norm": "encoder/layer_#/ffn_norm",
}
_NETWORK = {
    "csp_layer_#.edge_mlp.0": "layer_#/edge_0",
    "csp_layer_#.edge_mlp.2": "layer_#/edge_1",
    "csp_layer_#.node_mlp.0": "layer_#/node_0",
    "csp_layer_#.node_mlp.2": "layer_#/node_1",
    "csp_layer_#.layer_norm": "layer_#/norm",
    "final_layer_norm": "final_norm",
}


def _prefixed(table: Mapping[str, str], theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.{a}": f"{ours}/{b}" for a, b in table.items()}


_NAMES = {
    **_prefixed(_ENCODER, "pxrd_encoder", "pxrd_encoder"),
    **_prefixed(_NETWORK, "crystal_encoder", "crystal_network"),
    **_prefixed(_NETWORK, "decoder", "decoder"),
    "logit_scale": "logit_scale",
    "crystal_encoder.node_embedding": "species",
    "crystal_encoder.out_node": "crystal_head",
    "decoder.node_embedding": "atom_input/species",
    "decoder.atom_latent_emb": "atom_input/atom",
    "decoder.coord_out": "coord_head",
    "decoder.lattice_out": "lattice_head",
}
_BUFFERS = ("beta_scheduler.", "sigma_scheduler.")
_WRAPPERS = re.compile(r"^(?:_orig_mod\.|module\.|model\.)+")


def reference_name(name: str) -> tuple[str, str]:
    """Return our path and the kind of array (``kernel, bias, scale, embedding`` or ``""``).

    Raises:
        KeyError: the name is no parameter of the reference.
    """
    number = re.search(r"(?<=layers\.)\d+|(?<=csp_layer_)\d+", name)
    index = number.group() if number else ""
    general = name.replace(number.group(), "#", 1) if number else name
    if general in _NAMES:
        return _NAMES[general].replace("#", index), ""
    stem, _, kind = general.rpartition(".")
    path = _NAMES[stem].replace("#", index)
    if kind == "bias":
        return path, "bias"
    leaf = path.rpartition("/")[2]
    if leaf.endswith("norm"):
        return path, "scale"
    return path, "embedding" if leaf in ("species", "position") else "kernel"


def reference_params(state_dict: Mapping[str, Any]) -> Params:
    """Turn the reference's state_dict (NumPy arrays) into variables of `CPCP` or `CCSG`.

    Schedule buffers are left out. The type of the numbers is kept.

    Returns:
        ``{"params": ...}`` as ``model.init`` gives it, for the model that
        `reference_config` describes.

    Raises:
        ValueError: a name that is not the reference's, or names that are missing; all are listed.
    """
    state = {_WRAPPERS.sub("", k): v for k, v in state_dict.items()}
    state = {k: v for k, v in state.items() if not k.startswith(_BUFFERS)}
    params: dict[str, Any] = {}
    unknown = []
    for name, value in state.items():
        try:
            path, kind = reference_name(name)
        except KeyError:
            unknown.append(name)
            continue
        array = np.asarray(value)
        if kind == "kernel":
            array = array.T
        if path == "logit_scale":
            array = array.reshape(())
        *folders, leaf = [*path.split("/"), *([kind] if kind else [])]
        node = params
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = np.array(array, order="C")
    if unknown:
        raise ValueError(f"{len(unknown)} names are not the reference's: {', '.join(unknown[:8])}")
    missing = _expected(state) - set(state)
    if missing:
        raise ValueError(f"{len(missing)} weights are missing: {', '.join(sorted(missing)[:8])}")
    return {"params": params}


def _count(state: Mapping[str, Any], pattern: str) -> int:
    found = (re.match(pattern, name) for name in state)
    return 1 + max((int(m.group(1)) for m in found if m), default=-1)


def _is_cpcp(state: Mapping[str, Any]) -> bool:
    parts = {name.partition(".")[0] for name in state}
    if ("crystal_encoder" in parts) == ("decoder" in parts):
        raise ValueError(
            "expected the parts of CPCP (crystal_encoder.*) or of CCSG (decoder.*), found "
            + ", ".join(sorted(parts)[:8])
        )
    return "crystal_encoder" in parts


def _expected(state: Mapping[str, Any]) -> set[str]:
    tower = "crystal_encoder" if _is_cpcp(state) else "decoder"
    other = "decoder" if tower == "crystal_encoder" else "crystal_encoder"
    bare = {"logit_scale", "pxrd_encoder.vnode_encoder.weight"}
    no_bias = ("embed_positions", "node_embedding", "out_node", "coord_out", "lattice_out")
    layers = {"layers": _count(state, r"pxrd_encoder\.sentence_encoder\.layers\.(\d+)\.")}
    layers["csp"] = _count(state, tower + r"\.csp_layer_(\d+)\.")
    names: set[str] = set()
    for general in _NAMES:
        if general.startswith(other + ".") or (general == "logit_scale" and tower == "decoder"):
            continue
        count = layers["csp" if "csp_layer" in general else "layers"] if "#" in general else 1
        for stem in (general.replace("#", str(i)) for i in range(count)):
            if stem in bare:
                names.add(stem)
            else:
                names.add(stem + ".weight")
                if not stem.endswith(no_bias):
                    names.add(stem + ".bias")
    return names


def reference_config(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the model of a state_dict: ``{"model": "CPCP" or "CCSG", fields of that class}``.

    Sizes are read off the shapes; attention heads are 8 wide, as in every reference model.
    """
    state = {_WRAPPERS.sub("", k): np.asarray(v) for k, v in state_dict.items()}
    cpcp = _is_cpcp(state)
    tower = "crystal_encoder" if cpcp else "decoder"
    layer = "pxrd_encoder.sentence_encoder.layers"
    try:
        ffn, width = state[f"{layer}.0.fc1.weight"].shape
        out, inputs = state[f"{tower}.csp_layer_0.edge_mlp.0.weight"].shape
        config: dict[str, Any] = {
            "model": "CPCP" if cpcp else "CCSG",
            "encoder": {
                "width": width,
                "ffn": ffn,
                "heads": width // _HEAD_DIM,
                "layers": _count(state, re.escape(layer) + r"\.(\d+)\."),
            },
            "network": {
                "width": out,
                "layers": _count(state, tower + r"\.csp_layer_(\d+)\."),
                "num_freqs": (inputs - 2 * out - 9) // 6,
            },
        }
        if not cpcp:
            config["time_dim"] = state["decoder.atom_latent_emb.weight"].shape[1] - out - width
    except KeyError as e:
        raise ValueError(f"the weight {e} is missing from the checkpoint") from None
    return config
