"""Notebooks are stored clean, import only what is installed, and run from top to bottom."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from xtalnet_jax import compilation

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
BADGE = "https://colab.research.google.com/github/xtalnet-jax/xtalnet-jax/blob/main/notebooks/"

CHECKS = {
    "1_solve_a_pattern": """
assert solution.verdict in ("match", "uncertain") and solution.candidates
assert match_rmse(solution.candidates[0].crystal, example_crystal(), FIELD) is not None
assert best.confidence > control.candidates[0].confidence
assert os.path.getsize("solution/report.html") > 10000
""",
    "2_simulate_pxrd": """
assert abs(slope(0.0)) < 1e-2 < slope(0.02) and slope(-0.02) < -1e-2
step = 1e-3
numeric = (pattern_of(lattice, frac_coords + step * along_u)
           - pattern_of(lattice, frac_coords - step * along_u)) / (2 * step)
assert jnp.abs(numeric - by_u).max() < 0.02 * jnp.abs(by_u).max()
assert np.abs(result.cell[:3] - np.linalg.norm(rutile.lattice, axis=1)).max() < 0.01
assert result.space_group == 136 and result.rwp < 0.2
""",
    "3_train_on_your_cifs": """
assert not left_out and packed.num_crystals == len(textbook_crystals())
assert not np.allclose(before, after) and np.isfinite(after).all()
assert margin(after).mean() > margin(before).mean()
assert Path("runs/generator/weights.safetensors").is_file() and solution.candidates
""",
    "4_retrieval": """
assert len(database) == len(list(folder.iterdir())) and not skipped
assert ranked[0][0] == TRUTH and ranked[0][1].cosine > ranked[1][1].cosine
assert all("O" in h.formula for h in oxides) and potassium[0].id == TRUTH
""",
}


def read(path: Path) -> dict:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code_of(notebook: dict) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def plain(source: str) -> str:
    """Python without IPython's magics."""
    lines = source.splitlines()
    return "\n".join(
        f"{line[: len(line) - len(line.lstrip())]}pass" if line.lstrip().startswith("%") else line
        for line in lines
    )


def shows_figure(source: str) -> bool:
    """Whether the last statement of a cell calls one of the plotting functions."""
    last = ast.parse(plain(source)).body[-1]
    call = last.value if isinstance(last, ast.Expr) else None
    return isinstance(call, ast.Call) and getattr(call.func, "id", "").startswith("plot_")


def test_every_notebook_is_checked():
    assert [p.stem for p in NOTEBOOKS] == sorted(CHECKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_stored_clean(path):
    notebook = read(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None
    assert f"{BADGE}{path.name}" in notebook.cells[0].source
    install = code_of(notebook)[0]
    assert "%pip install -q xtalnet-jax" in install
    assert 'if find_spec("xtalnet_jax") is None' in install


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_imports_only_what_is_installed(path):
    tree = ast.parse("\n".join(plain(source) for source in code_of(read(path))))
    modules = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
        )
    }
    assert not modules & {"configs", "launch", "tests", "benchmarks"}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs(path, tmp_path):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    notebook = read(path)
    num_figures = sum(shows_figure(source) for source in code_of(notebook))
    notebook.cells.append(nbformat.v4.new_code_cell(CHECKS[path.stem]))
    environment = os.environ | {
        "XTALNET_NOTEBOOK_SMALL": "1",
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(compilation.cache_dir() / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    client = nbclient.NotebookClient(
        notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env=environment)
    figures = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(figures) >= num_figures >= 2
