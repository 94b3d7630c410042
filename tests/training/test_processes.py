"""Several devices, several processes, and processes that are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.training import toy
from xtalnet_jax.training import checkpoint
from xtalnet_jax.training.metrics_log import read_metrics

REPOSITORY = Path(__file__).parents[2]
CACHE = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


@pytest.fixture(autouse=True)
def shared_cache(compilation_cache, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(compilation_cache))


def start(workdir: Path, config: dict, task: str = "plain", **env: str) -> subprocess.Popen:
    workdir.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.worker", workdir, json.dumps(config), task],
        cwd=REPOSITORY,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY), **CACHE, **env},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes: subprocess.Popen) -> None:
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err


def result(workdir: Path, process: int = 0) -> list[np.ndarray]:
    with np.load(workdir / f"final-{process}.npz") as file:
        assert file["step"] == 20
        return [file[name] for name in file.files]


def devices(num: int) -> dict[str, str]:
    return {"XLA_FLAGS": f"--xla_force_host_platform_device_count={num}"}


@pytest.mark.parametrize("task", ["plain", "contrastive"])
def test_four_devices_equal_one(tmp_path, task):
    """Also for a loss whose negatives are on the other devices; both checkpoint formats."""
    config = toy.config(ema_decay=0.9, clip=1.0)
    group = {"steps_per_dispatch": 5, "checkpoint_format": "orbax"} if task == "plain" else {}
    one = start(tmp_path / "one", config | {"parallel": "jit"}, task)
    four = start(tmp_path / "four", config | group, task, **devices(4))
    finish(one, four)
    for a, b in zip(result(tmp_path / "one"), result(tmp_path / "four"), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    about = json.loads((tmp_path / "four" / "config.json").read_text())
    assert about["device"].startswith("4 x")
    losses = [
        [row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("one", "four")
    ]
    np.testing.assert_allclose(*losses, atol=1e-5)
    if task == "contrastive":
        rows = read_metrics(tmp_path / "four" / "metrics.jsonl")
        assert min(row["spread"] for row in rows) > 0.1


@pytest.mark.slow
def test_run_continues_on_another_number_of_devices(tmp_path):
    config = toy.config()
    whole, part = tmp_path / "whole", tmp_path / "part"
    finish(
        start(whole, config),
        start(part, config | {"num_steps": 20, "_source": {}}, **devices(2)),
    )
    # the same schedule, cut at step 10 by removing what came later
    state, meta = checkpoint.load_params(part, average=False)
    assert meta["step"] == 20
    longer = config | {"num_steps": 30}
    finish(start(part, longer), start(whole, longer, **devices(2)))
    for workdir in (part, whole):
        with np.load(workdir / "final-0.npz") as file:
            assert file["step"] == 30
    a, b = (checkpoint.load_params(x)[0]["params"]["head"]["w"] for x in (part, whole))
    np.testing.assert_allclose(a, b, atol=1e-6)
    assert not np.array_equal(a, state["params"]["head"]["w"])


@pytest.mark.parametrize("format", ["npz", pytest.param("orbax", marks=pytest.mark.slow)])
def test_killed_at_any_moment_and_resumed_gives_the_same_bits(tmp_path, format):
    config = toy.config(
        ema_decay=0.9,
        checkpoint_every_steps=1,
        checkpoint_format=format,
        log_every=1,
        _seconds_per_batch=0.02,
        _source={"ragged": True},
    )
    whole = start(tmp_path / "whole", config, "noisy")
    killed = tmp_path / "killed"
    process = start(killed, config, "noisy")
    random.seed(time.time_ns())
    deadline = time.monotonic() + 60
    while (checkpoint.latest_step(killed / "checkpoints") or 0) < 3:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.2))  # in a step, in a write, in a rename ...
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "final-0.npz").exists()
    finish(whole, start(killed, config, "noisy"))
    for a, b in zip(result(tmp_path / "whole"), result(killed), strict=True):
        assert np.array_equal(a, b)
    steps = [row["step"] for row in read_metrics(killed / "metrics.jsonl")]
    assert steps == list(range(1, 21))


def join(workdir: Path, config: dict, **env: str) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    common = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", **env}
    return [start(workdir, config, "contrastive", **common, JAX_PROCESS_ID=str(i)) for i in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("format", ["npz", "orbax"])
def test_two_processes_equal_one(tmp_path, format):
    config = toy.config(ema_decay=0.9, checkpoint_every_steps=10, checkpoint_format=format)
    one = start(tmp_path / "one", config, "contrastive")
    finish(one, *join(tmp_path / "two", config))
    for process in (0, 1):
        for a, b in zip(result(tmp_path / "one"), result(tmp_path / "two", process), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    steps = [row["step"] for row in read_metrics(tmp_path / "two" / "metrics.jsonl")]
    assert steps == [5, 10, 15, 20]


@pytest.mark.slow
def test_losing_a_process_ends_the_other_and_the_run_can_go_on(tmp_path):
    config = toy.config(log_every=1, checkpoint_every_steps=1, _seconds_per_batch=0.2)
    main, other = join(tmp_path, config)
    while (checkpoint.latest_step(tmp_path / "checkpoints") or 0) < 3:
        assert main.poll() is None, main.communicate()[1]
        time.sleep(0.01)
    other.kill()
    other.communicate()
    _, err = main.communicate(timeout=60)
    assert main.returncode != 0
    assert "lost contact with another process of the run after step" in err
    step = checkpoint.latest_step(tmp_path / "checkpoints")
    assert 3 <= step < 20
    finish(*join(tmp_path, config))
    result(tmp_path)
