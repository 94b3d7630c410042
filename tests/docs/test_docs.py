"""The documentation says what the code does: flags, recipes, names, numbers."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import pytest

import xtalnet_jax
from xtalnet_jax.evaluation.matching import TOLERANCES
from xtalnet_jax.evaluation.tables import load_results

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md")) + [ROOT / "README.md"]


def load(name: str) -> ModuleType:
    """A module of docs/, as mkdocs loads it: from its file."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks, plots = load("hooks"), load("plots")


def commands(path: Path) -> list[list[str]]:
    """The words of every ``python -m launch.X`` in the code blocks of a page."""
    blocks = re.findall(r"```sh\n(.*?)```", path.read_text(encoding="utf-8"), re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [line[line.index("launch.") :] for line in lines if "python -m launch." in line]
    return [shlex.split(line, comments=True) for line in found]


@lru_cache
def flags(command: str) -> set[str]:
    text = hooks.options(command)
    return {name.replace("[no]", "") for name in re.findall(r"^\s*--(\[no\]\w+|\w+)", text, re.M)}


def config_value(words: list[str], flag: str):
    recipe = next(w for w in words if w.startswith("--config=")).partition("=")[2]
    name, _, variant = recipe.removesuffix("/").partition(".py")
    module = importlib.import_module(name.replace("/", "."))
    value = module.get_config(variant.removeprefix(":"))
    for part in flag.removeprefix("config.").split("."):
        value = value[part]  # KeyError: the page names a field that the recipe does not have
    return value


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_and_flags_exist(path):
    for program, *words in commands(path):
        command = program.removeprefix("launch.")
        for word in words:
            assert word.startswith("--"), (path.name, word)
            flag = word[2:].partition("=")[0]
            if flag.startswith("config."):
                config_value(words, flag)
            elif flag == "config":
                config_value(words, "stages" if command == "campaign" else "task")
            else:
                known = flags(command)
                assert flag in known or flag.removeprefix("no") in known, (path.name, word)


def test_every_command_has_a_page():
    stems = {p.stem for p in (ROOT / "launch").glob("*.py")} - {"__init__", "cli", "training_flags"}
    for stem in stems:
        page = ROOT / "docs" / "how-to" / f"{stem}.md"
        assert f"<!-- options {stem} -->" in page.read_text(encoding="utf-8")
        assert any(words[0] == f"launch.{stem}" for words in commands(page))


def test_public_names_are_documented():
    pages = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "docs" / "api").glob("*.md"))
    documented = re.findall(r"^::: (\S+)", pages, re.M)
    for name in set(xtalnet_jax.__all__) - {"__version__"}:
        assert any(d.endswith(f".{name}") for d in documented), name
        assert f"`{name}`" in pages, name
    for path in documented:
        module, _, name = path.rpartition(".")
        found = getattr(importlib.import_module(module), name, None)
        assert found is not None or importlib.import_module(path), path


def python_of(page: str, containing: str = "") -> str:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    return next(block for block in blocks if containing in block)


def test_control_of_the_pitfalls_runs(capsys):
    many = "for _ in range(10)"
    code = python_of("pitfalls.md", many)
    exec(code.replace(many, "for _ in range(1)"), {})
    assert capsys.readouterr().out.count("of random crystals match") == len(TOLERANCES)


def test_quick_start_uses_public_names():
    tree = ast.parse(python_of("index.md"))
    names = [a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names]
    assert names
    assert set(names) <= set(xtalnet_jax.__all__)


def test_results_are_those_of_the_files():
    text = hooks.results(ROOT / "results")
    files = sorted((ROOT / "results").glob("*/results.json"))
    assert files
    for path in files:
        assert f"## {path.parent.name}" in text
        if isinstance(json.loads(path.read_text()), list):
            for row in load_results(path):
                for name, value in row.values.items():
                    assert hooks.estimate(name, value) in text
                assert row.provenance.command in text


def test_benchmarks_are_those_of_the_files():
    text = hooks.benchmarks(ROOT / "results")
    for path in (ROOT / "results").glob("*.md"):
        assert path.read_text(encoding="utf-8").splitlines()[-1] in text
    assert text.count("<svg") == text.count("</svg>") == sum(map(len, plots.PLOTS.values()))
    assert "<?xml" not in text


def test_plots_have_a_line_for_each_kind():
    rows = [{"n": n, "s": n**2, "kind": kind} for kind in ("a", "b") for n in (1, 2, 4)]
    drawn = plots.svg(rows, plots.Plot("n", ("s",), "seconds", ("kind",)))
    assert drawn == plots.svg(rows, plots.Plot("n", ("s",), "seconds", ("kind",)))
    assert "\n" not in drawn
    with pytest.raises(KeyError, match="missing"):
        plots.svg(rows, plots.Plot("n", ("missing",), "seconds"))


def test_results_of_any_form(tmp_path):
    assert hooks.results(tmp_path) == "Nothing has been measured yet."
    record = {"device": "cpu", "cases": [{"atoms": 4, "ms": 1.23456789}], "sizes": [1, 2]}
    (tmp_path / "speed").mkdir()
    (tmp_path / "speed" / "results.json").write_text(json.dumps(record))
    text = hooks.results(tmp_path)
    assert "| cases / 1 / ms | 1.23457 |" in text
    assert "| sizes | [1, 2] |" in text
    (tmp_path / "speed" / "results.md").write_text("# Speed\n\nfast\n")
    assert "### Speed\n\nfast" in hooks.results(tmp_path)
    (tmp_path / "speed" / "results.json").write_text("[1]")
    with pytest.raises(ValueError, match="does not hold results"):
        hooks.results(tmp_path)


def test_markers_are_replaced():
    page = hooks.on_page_markdown("<!-- options simulate -->\n\ntext\n")
    assert "--[no]peaks" in page
    assert "<!--" not in page
    with pytest.raises(ValueError, match=r"launch\.nothing --help failed"):
        hooks.options("nothing")


@pytest.mark.slow
def test_site_builds(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "api" / "solving" / "index.html").read_text(encoding="utf-8")
    assert "Calibrated probability" in page  # a trailing comment of a field
