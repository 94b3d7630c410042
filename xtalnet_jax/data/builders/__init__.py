"""Named data sets as TensorFlow-free tfds builders: downloaded files in, ArrayRecord files out.

One module per data set, named like it; `base` holds what they share, `source` reads them back.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xtalnet_jax.data.builders.source import TfdsSource

NAMES = ("carbon24", "cif_folder", "hmof100", "hmof400", "mp20", "mpts52", "npz", "perov5")


def build(name: str, manual_dir: str | Path, data_dir: str | Path, split: str) -> TfdsSource:
    """Build the data set ``name`` below ``data_dir``, if it is not there, and open a split of it.

    Args:
        name: one of `NAMES`.
        manual_dir: where the downloaded files lie; what they are called is in the instructions of
            each builder, and in the message when they are missing.
        data_dir: receives ``name/version``.
        split: train, val or test.

    Raises:
        ValueError: unknown name, files or split.
    """
    if name not in NAMES:
        raise ValueError(f"there is no data set {name!r}, only {', '.join(NAMES)}")
    if not Path(manual_dir).is_dir():
        raise ValueError(f"there is no folder {manual_dir} with the files of {name}")
    from xtalnet_jax.data.builders import base
    from xtalnet_jax.data.builders.source import TfdsSource

    module = importlib.import_module(f"{__name__}.{name}")
    builders = [b for b in vars(module).values() if base.is_builder(b, module.__name__)]
    return TfdsSource(base.build(builders[0], Path(manual_dir), Path(data_dir)), split)
