"""Bad input ends in status 2 and one sentence, before anything slow is begun."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from tests.solve import tiny
from xtalnet_jax.data.fixtures import textbook_crystals
from xtalnet_jax.pxrd.simulate import simulate_pattern
from xtalnet_jax.solve.solution import Candidate
from xtalnet_jax.solve.solver import Solver

ROOT = Path(__file__).parents[2]
RUTILE = textbook_crystals()["rutile"]
Call = Callable[..., str]

X = np.arange(10.0, 60.0, 0.5)
Y = 5.0 + 100 * np.exp(-(((X - 30) / 0.5) ** 2))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(autouse=True)
def nothing_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    def begun(*args: object, **kwargs: object) -> None:
        raise AssertionError("work was begun in spite of bad input")

    for name in ("propose", "fit", "embed_crystals", "embed_patterns"):
        monkeypatch.setattr(Solver, name, begun)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run a command in this process; return its one sentence."""

    def run(name: str, *arguments: str) -> str:
        before = set(flags.FLAGS)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        try:
            with pytest.raises(SystemExit) as end:
                runpy.run_module(f"launch.{name}", run_name="__main__", alter_sys=True)
        finally:
            for flag in set(flags.FLAGS) - before:
                delattr(flags.FLAGS, flag)
            flags.FLAGS.unparse_flags()
        told = capsys.readouterr().err
        assert end.value.code == 2, told
        assert len(told.strip().splitlines()) == 1
        assert told.startswith("error: ")
        assert "Traceback" not in told
        return told

    return run


def table(*columns: np.ndarray) -> str:
    return "\n".join(" ".join(f"{v:g}" for v in row) for row in zip(*columns)) + "\n"


def with_value(y: np.ndarray, place: int, value: float) -> np.ndarray:
    changed = y.copy()
    changed[place] = value
    return changed


# Patterns -----------------------------------------------------------------------------------------

PATTERNS = {
    "empty": ("", "empty"),
    "prose": ("this is no pattern\nat all\n", "no rows of numbers"),
    "one_column": (table(Y), "only one column"),
    "nan": (table(X, with_value(Y, 7, np.nan)), "not finite"),
    "infinite": (table(X, with_value(Y, 7, np.inf)), "not finite"),
    "all_zero": (table(X, 0 * Y), "expected positive counts"),
    "all_negative": (table(X, -Y), "expected positive counts"),
    "some_negative": (table(X, with_value(Y, 7, -60.0)), "intensities fall to -60"),
    "unsorted": (table(np.random.default_rng(0).permutation(X), Y), "expected increasing angles"),
    "duplicate": (table(with_value(X, 8, X[7]), Y), "expected increasing angles"),
    "too_short": (table(X[:5], Y[:5]), "only 5 points"),
    "beyond_180": (table(X * 10, Y), "expected degrees"),
    "ragged": (table(X, Y) + "61\n", "is the file cut off"),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_pattern(call, tmp_path, name):
    text, message = PATTERNS[name]
    path = tmp_path / f"{name}.xy"
    path.write_text(text)
    told = call("sample", f"--pattern={path}", "--formula=TiO2", "--wavelength=1.5406")
    assert message in told
    assert path.name in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pattern=nowhere.xy", "--formula=TiO2"], "nowhere.xy: no such file"),
        (["--pattern=.", "--formula=TiO2"], "not a file"),
        (["--pattern={good}"], "without --formula"),
        (["--formula=TiO2"], "without --pattern"),
        (["--pattern={good}", "--formula=TiO2"], "give --wavelength"),
        (["--pattern={good}", "--formula=TiO2", "--wavelength=0"], "expected a positive number"),
        (["--pattern={good}", "--formula=TiO2", "--wavelength=154"], "expected 0.05 to 5"),
        (
            ["--pattern={good}", "--formula=TiO2", "--wavelength=Cu"],
            "expected angstrom, e.g. 1.5406",
        ),
        (["--pattern={good}", "--formula=TiO2", "--axis=energy"], "axis"),
        (["--pattern={good}", "--patterns={good}", "--formula=TiO2"], "were both given"),
        (["--patterns={good}"], "--patterns was given without --formula"),
        (["--patterns={good}*.xrdml", "--formula=TiO2"], "no file matches"),
        (["TiO2"], "unexpected argument 'TiO2'"),
        (["--z=two"], "--z"),
    ],
)
def test_pattern_flags(call, tmp_path, arguments, message):
    good = tmp_path / "good.xy"
    good.write_text(table(X, Y))
    assert message in call("sample", *[a.format(good=good) for a in arguments])


# Questions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--formula=Ti(O2", "brackets"),
        ("--formula=Qq3", "unknown element 'Qq'"),
        ("--formula=ti2", "cannot read"),
        ("--formula=TiO0", "not a positive whole number"),
        ("--formula=", "no atoms"),
        ("--formula=Ca10P6O26H2", "has 44 atoms, these weights take at most 6"),
        ("--formula=Og", "no X-ray form factor"),
        ("--z=0", "expected at least 1 formula unit"),
        ("--z=9", "has 27 atoms"),
        ("--num_candidates=0", "num_candidates is 0"),
        ("--lattice=1,2,3", "is no cell"),
        ("--lattice=4,4,4,90,90,x", "holds no six numbers"),
        ("--lattice=4,4,4,20,20,120", "is no cell"),
        ("--space_group=Pnmx", "space group 'Pnmx' is unknown"),
        ("--space_group=231", "is unknown"),
        ("--weights=nowhere", "no weights 'nowhere'"),
        ("--out={file}", "cannot write to the folder"),
        ("--out={file}/deeper", "cannot write to the folder"),
    ],
)
def test_question(call, weights, tmp_path, argument, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "good.xy").write_text(table(X, Y))
    told = call(
        "sample", f"--pattern={tmp_path / 'good.xy'}", "--wavelength=1.5406", "--formula=TiO2",
        f"--weights={weights}", f"--out={tmp_path / 'out'}",
        argument.format(file=tmp_path / "file"),
    )  # fmt: skip
    assert message in told
    assert not list(tmp_path.glob("out/*"))


def test_question_about_many_files_is_judged_before_the_files(call, weights, tmp_path):
    for name in ("a.xy", "b.xy"):
        (tmp_path / name).write_text(table(X, Y))
    out = tmp_path / "out"
    told = call(
        "sample", f"--patterns={tmp_path}/*.xy", "--formula=Qq3", f"--weights={weights}",
        "--wavelength=CuKa", f"--out={out}",
    )  # fmt: skip
    assert "unknown element 'Qq'" in told
    assert not list(out.glob("*"))


@pytest.mark.parametrize(("bad", "status"), [(["b.xy"], 1), (["a.xy", "b.xy"], 2), ([], 0)])
def test_status_says_whether_all_files_were_solved(
    weights, tmp_path, monkeypatch, capsys, bad, status
):
    pattern = simulate_pattern(RUTILE, two_theta_range=(20, 60), step=0.1)
    fit = tiny.refined(RUTILE, pattern)
    first = Candidate(RUTILE, 0.03, 0.9, 0.95, "P4_2/mnm", fit.calculated, 1, fit)
    monkeypatch.setattr(Solver, "solve", lambda *a, **k: tiny.solution([first], pattern))
    for name in ("a.xy", "b.xy"):
        (tmp_path / name).write_text("nothing" if name in bad else table(X, Y))
    arguments = [
        "sample", f"--patterns={tmp_path}/*.xy", "--formula=TiO2", "--wavelength=CuKa",
        f"--weights={weights}", f"--out={tmp_path / 'out'}",
    ]  # fmt: skip
    before = set(flags.FLAGS)
    monkeypatch.setattr(sys, "argv", arguments)
    try:
        with pytest.raises(SystemExit) as end:
            runpy.run_module("launch.sample", run_name="__main__", alter_sys=True)
    finally:
        for flag in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, flag)
        flags.FLAGS.unparse_flags()
    assert end.value.code == status
    told = capsys.readouterr()
    assert told.out.count("  error  ") == len(bad)
    assert told.out.count("  match  ") == 2 - len(bad)
    assert told.err.count("weighted mean of the K-alpha doublet") == 2 - len(bad)


# The other commands -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--structure and --out are needed"),
        (["--structure=nowhere.cif", "--out={tmp}/a.xy"], "no structure file nowhere.cif"),
        (["--structure={tmp}/bad.cif", "--out={tmp}/a.xy"], "cannot read a crystal structure"),
        (["--structure={cif}", "--out={tmp}/a.pdf"], "written as .xy or .xye"),
        (["--structure={cif}", "--out={tmp}/no/a.xy"], "No such file"),
        (["--structure={cif},{cif}", "--out={tmp}/o"], "have the same name"),
        (["--structure={cif}", "--out={tmp}/a.xy", "--two_theta_range=5"], "needs two numbers"),
        (["--structure={cif}", "--out={tmp}/a.xy", "--two_theta_range=90,5"], "90"),
        (["--structure={cif}", "--out={tmp}/a.xy", "--wavelength=0"], "wavelength"),
        (["--structure={cif}", "--out={tmp}/a.xy", "--step=0"], "step"),
        (["--structure={cif}", "--out={tmp}/a.xy", "--fwhm=-1"], "fwhm"),
    ],
)
def test_simulate(call, tmp_path, arguments, message):
    cif = tmp_path / "salt.cif"
    cif.write_text(textbook_crystals()["caesium_chloride"].to_structure().to(fmt="cif"))
    (tmp_path / "bad.cif").write_text("data_x\n_cell_length_a 4\n")
    assert message in call("simulate", *[a.format(cif=cif, tmp=tmp_path) for a in arguments])
    assert not (tmp_path / "a.xy").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--index and at least one of"),
        (["--index={tmp}/i.npz", "--pattern={tmp}/nowhere.xy"], "no such file"),
        (["--index={tmp}/i.npz", "--pattern={tmp}/good.xy"], "i.npz"),
        (["--index={tmp}/good.xy", "--pattern={tmp}/good.xy"], "not a retrieval index"),
        (["--index={tmp}/i.npz", "--pattern={tmp}/good.xy", "--k=0"], "expected at least 1"),
        (["--index={tmp}/i.npz", "--pattern={tmp}/good.xy", "--rerank=-1"], "expected at least 0"),
        (["--index={tmp}/i.npz", "--build={tmp}", "--elements=Ti,Xy"], "unknown element 'Xy'"),
        (["--index={tmp}/i.npz", "--build={tmp}", "--formula=TiO0"], "count 0"),
        (["--index={tmp}/i.npz", "--build={tmp}/nowhere"], "nowhere"),
        (["--index={tmp}/i.txt", "--build={tmp}"], "must end in .npz"),
        (["--index={tmp}/good.xy/i.npz", "--build={tmp}"], "cannot write"),
        (["--index={tmp}/i.npz", "--build={tmp}", "--weights=nowhere"], "'nowhere'"),
    ],
)
def test_retrieve(call, tmp_path, arguments, message):
    head = "# wavelength = 1.5406 angstrom\n"
    (tmp_path / "good.xy").write_text(head + table(X, Y))
    (tmp_path / "a.cif").write_text(textbook_crystals()["silicon"].to_structure().to(fmt="cif"))
    assert message in call("retrieve", *[a.format(tmp=tmp_path) for a in arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data is needed"),
        (["--data=nowhere.npz"], "no packed set at nowhere.npz"),
        (["--data={file}"], "is not a packed set"),
        (["--data=textbook", "--num_items=0"], "must be at least 1"),
        (["--data=textbook", "--controls=random"], "expected some of"),
        (["--data=textbook", "--pool=-1"], "--pool must be at least 0"),
        (["--data=textbook", "--two_theta=30,3"], "expected two angles"),
        (["--data=textbook", "--two_theta=3"], "expected two angles"),
        (["--data=textbook", "--weights=nowhere"], "no weights 'nowhere'"),
        (["--data=textbook", "--out={file}"], "cannot write to the folder"),
    ],
)
def test_evaluate(call, weights, tmp_path, arguments, message):
    (tmp_path / "file").write_text("")
    given = [a.format(file=tmp_path / "file") for a in arguments]
    assert message in call("evaluate", f"--weights={weights}", *given)


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("pretrain", ["--config=configs/nowhere.py"], "nowhere.py"),
        ("pretrain", ["--config=configs/cpcp.py:huge"], "unknown variant 'huge'"),
        ("pretrain", ["--config.train.learning_rat=1"], "learning_rat"),
        ("pretrain", ["--config.train.num_epochs=many"], "num_epochs"),
        ("pretrain", ["--config.train.clip=strong"], "clip"),
        ("pretrain", ["--config.data.train=nowhere.npz"], "no packed set at nowhere.npz"),
        ("pretrain", ["--config=configs/flow.py:smoke"], "use launch.train"),
        ("train", ["--config=configs/cpcp.py:smoke"], "use launch.pretrain"),
        ("train", ["--config=configs/flow.py:smoke", "--config.init_from=nowhere"], "nowhere"),
        ("train", ["--config=configs/flow.py:smoke", "--stop_after=soon"], "stop_after"),
        ("campaign", [], "--seconds is None"),
        ("campaign", ["--config.stages.flow.nonsense=1", "--seconds=9"], "nonsense"),
        ("campaign", ["--config=configs/campaign.py", "--seconds=-1"], "--seconds is -1.0"),
    ],
)
def test_training(call, tmp_path, monkeypatch, command, arguments, message):
    monkeypatch.chdir(ROOT)
    assert message in call(command, *arguments, f"--workdir={tmp_path / 'run'}")
    assert not list(tmp_path.glob("run/**/*.safetensors"))


def test_fields_of_the_recipe_that_was_asked_for_can_be_changed(call, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    told = call(
        "train", "--config=configs/ccsg.py:smoke", "--config.diffusion.num_steps=7",
        "--config.data.train=nowhere.npz", f"--workdir={tmp_path}",
    )  # fmt: skip
    assert "no packed set at nowhere.npz" in told


def test_training_folder_that_cannot_be_written(call, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "file").write_text("")
    told = call("pretrain", "--config=configs/cpcp.py:smoke", f"--workdir={tmp_path / 'file'}/run")
    assert "file" in told


# As a user sees it --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["launch.sample", "--pattern=nowhere.xy", "--formula=TiO2"], ["launch.evaluate"]]
)
def test_in_a_process_of_its_own(arguments):
    command = [sys.executable, "-m", *arguments]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert len(answer.stderr.strip().splitlines()) == 1
    assert answer.stdout == ""
