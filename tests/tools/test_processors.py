"""The simulated processors reach the chapters."""

import subprocess
import sys

import pytest

from tools import environment, processors


def test_every_processor_runs_the_chapters_and_one_that_fails_is_named(monkeypatch):
    seen = []

    def run(command, env):
        seen.append(
            (
                command,
                {
                    name: env.get(name)
                    for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS")
                },
            )
        )
        return subprocess.CompletedProcess(command, len(seen) == 2)

    monkeypatch.setattr(processors.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["processors", "a.ipynb"])
    with pytest.raises(SystemExit, match="not on: default, 4 threads"):
        processors.main()
    assert {command[-1] for command, _ in seen} == {"a.ipynb"}
    assert sorted(tuple(environment.values()) for _, environment in seen) == [
        ("avx2", "AVX2", "1"),
        ("avx2", "AVX2", "4"),
        ("default", "SSE41", "1"),
        ("default", "SSE41", "4"),
    ]


def test_pytorch_obeys(monkeypatch):
    """In a chapter's environment the instructions (on x86) and the threads are those asked for."""
    for name, value in processors.PROCESSORS["default, 1 thread"].items():
        monkeypatch.setenv(name, value)
    code = "import torch; print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())"
    command = [sys.executable, "-c", code]
    found = subprocess.run(
        command, env=environment.kernel_environment(), capture_output=True, check=True
    )
    assert found.stdout.decode().split() == ["DEFAULT", "1"]
