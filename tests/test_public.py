"""The public names, in whatever order things were imported."""

import subprocess
import sys

import pytest

import xtalnet_jax


def test_every_public_name_is_there():
    for name in xtalnet_jax.__all__:
        assert getattr(xtalnet_jax, name) is not None
    assert set(dir(xtalnet_jax)) >= set(xtalnet_jax.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'solve_it'"):
        xtalnet_jax.solve_it


@pytest.mark.parametrize("first", ["pass", "import xtalnet_jax.refine.refine"])
def test_refine_can_be_called_whatever_was_imported_before(first):
    code = f"{first}\nfrom xtalnet_jax import refine\nassert callable(refine)\n"
    code += "from xtalnet_jax.refine.refine import refine as function\n"
    code += "import xtalnet_jax\nassert callable(xtalnet_jax.refine) and callable(function)\n"
    code += "try:\n    refine(None, None)\nexcept TypeError as e:\n    assert 'NoneType' in str(e)"
    subprocess.run([sys.executable, "-c", code], check=True)
