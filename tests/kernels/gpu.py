"""Marks of tests by what they need of Triton and GPUs, and runs in a separate process."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
CUDA = torch.cuda.is_available() and not INTERPRETING
installed = pytest.mark.skipif(not find_spec("triton"), reason="triton is not installed")
compiling = pytest.mark.skipif(INTERPRETING or not find_spec("triton"), reason="needs triton, not interpreting")
interpreted = pytest.mark.skipif(not INTERPRETING, reason="needs TRITON_INTERPRET=1: make test-triton")
on_gpu = pytest.mark.skipif(not CUDA or not find_spec("triton"), reason="needs a GPU and triton")
running = pytest.mark.skipif(
    not (INTERPRETING or CUDA) or not find_spec("triton"), reason="needs triton, and a GPU or TRITON_INTERPRET=1"
)


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run Python in a process of its own at the root of the repository."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=250,
    )
