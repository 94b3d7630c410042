"""Commands answer at once and bad input is one sentence, before anything heavy is imported."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

COMMANDS = (
    "pretrain",
    "train",
    "campaign",
    "sample",
    "evaluate",
    "retrieve",
    "simulate",
    "prepare",
    "convert",
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def cpu_seconds(*arguments: str) -> float:
    """Processor time of a process, which a busy machine does not stretch."""
    before = os.times()
    assert run(*arguments).returncode == 0
    after = os.times()
    return (after.children_user - before.children_user) + (
        after.children_system - before.children_system
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_help_answers_without_heavy_imports(name: str) -> None:
    start = time.perf_counter()
    answer = run("-X", "importtime", "-m", f"launch.{name}", "--help")
    assert answer.returncode == 0
    assert "--" in answer.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in answer.stderr.splitlines()}
    assert not imported & {"jax", "flax", "pymatgen", "tensorflow_datasets", "orbax"}
    assert time.perf_counter() - start < 60


def test_import_and_help_cost_little() -> None:
    assert cpu_seconds("-c", "import xtalnet_jax") < 1.0
    assert cpu_seconds("-m", "launch.sample", "--help") < 0.5


@pytest.mark.parametrize("name", COMMANDS)
def test_unknown_flag_is_one_sentence(name: str) -> None:
    answer = run("-m", f"launch.{name}", "--no_such_flag=1")
    assert answer.returncode == 2
    assert len(answer.stderr.strip().splitlines()) == 1
    assert "no_such_flag" in answer.stderr
    assert "Traceback" not in answer.stderr
