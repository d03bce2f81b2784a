"""What the compiled kernels must bear: forks, several Python threads, a start without them."""

import os
import subprocess
import sys
import textwrap

import pytest

from distrec.kernels.numba.optimizer import _STEPS
from distrec.optim.rules import RULES

PRELUDE = """
import os, threading, torch
from distrec.optim.config import OptimConfig
from distrec.optim.sparse import SparseOptimizer
from distrec.sharding.partition import Plan
from distrec.sharding.table import Table
torch.set_num_threads(2)

def steps():
    table = Table("items", Plan(500, 1, 1), 0, torch.ones(500, 5))
    optimizer = SparseOptimizer(table, OptimConfig(rule="sgd", lr=0.5), 100)
    for _ in range(50):
        optimizer.step(torch.arange(500), torch.ones(500, 5))
    assert torch.equal(table.stored_VD, torch.full((500, 5), -24.0)), table.stored_VD
"""


def run(script: str, **environment: str) -> None:
    """Runs a script in a process of its own; it must end well, and in time."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(script)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_every_rule_has_its_loop():
    assert set(_STEPS) == {RULES[name] for name in RULES}


def test_configurations_are_read_without_compiler():
    run("import sys, distrec.optim.config; assert not {'numba', 'llvmlite'} & {*sys.modules}")


@pytest.mark.parametrize("layer", ["default", "workqueue"])
def test_a_fork_of_a_process_that_has_used_threads(layer):
    """Python's own default way to start processes on Linux until 3.14."""
    run(
        """
        steps()
        child = os.fork()
        if child == 0:
            steps()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        steps()
        """,
        NUMBA_THREADING_LAYER=layer,
    )


@pytest.mark.parametrize("layer", ["default", "workqueue"])
def test_several_python_threads_at_once(layer):
    run(
        """
        failures = []
        threading.excepthook = failures.append
        threads = [threading.Thread(target=steps) for _ in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        assert not failures, failures
        """,
        NUMBA_THREADING_LAYER=layer,
    )


def test_one_thread_as_ray_gives_its_workers():
    run("torch.set_num_threads(1); steps(); torch.set_num_threads(8); steps()", OMP_NUM_THREADS="1")
