"""Convert a checkpoint of the public PyTorch implementation to our weights file.

    python -m launch.convert --checkpoint=FILE --out=FILE.safetensors [--dtype=bfloat16]

Reads Lightning .ckpt, torch.save archives and .npz files of a state_dict. PyTorch is not needed,
and nothing in the checkpoint is executed.
"""

from __future__ import annotations

from absl import flags

from launch import cli

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "File to read.")
_OUT = flags.DEFINE_string("out", None, "File to write; its name ends in .safetensors.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Type of stored numbers.")


def main() -> None:
    """Run the command."""
    if not _CHECKPOINT.value:
        raise ValueError("--checkpoint=FILE is missing: the PyTorch checkpoint to read")
    if not (_OUT.value or "").endswith(".safetensors"):
        raise ValueError(f"--out is {_OUT.value!r}, expected a name that ends in .safetensors")

    from xtalnet_jax.pretrained.reference import load_reference
    from xtalnet_jax.pretrained.safetensors_io import save_safetensors

    params, config = load_reference(_CHECKPOINT.value)
    save_safetensors(_OUT.value, params, config, _DTYPE.value)
    print(f"{config['model']} written to {_OUT.value}")


if __name__ == "__main__":
    cli.run(main)
