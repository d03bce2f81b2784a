"""Compiled optimizer kernels: forks, Python threads, the cache on disk, and imports without a compiler."""

import os
import subprocess
import sys
import textwrap

import pytest

from distrec.kernels.numba.optimizer import REPLAYS, STEPS
from distrec.optim.rules import RULES

PRELUDE = """
import os, threading, torch
from distrec.optim.config import OptimConfig
from distrec.optim.sparse import SparseOptimizer
from distrec.sharding.partition import Partition
from distrec.sharding.table import Table
torch.set_num_threads(2)

def steps():
    table = Table("items", Partition(500, 1, 1), 0, torch.ones(500, 5))
    optimizer = SparseOptimizer(table, OptimConfig(rule="sgd", lr=0.5), 100)
    for _ in range(50):
        optimizer.step(torch.arange(500), torch.ones(500, 5))
    assert torch.equal(table.stored_VD, torch.full((500, 5), -24.0)), table.stored_VD
"""


def run(script: str, **environment: str) -> str:
    """Run a script in a process of its own; it must exit with 0 within the time limit."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(script)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_rule_has_its_loop():
    assert set(STEPS) == set(REPLAYS) == set(RULES)


@pytest.mark.long
def test_rules_do_not_collide_in_the_cache_and_a_second_process_hits_it(tmp_path):
    """The loops of all rules are closures of one source line, which share an index file of numba's cache."""
    script = """
        import numpy as np
        from distrec.kernels.numba import optimizer as loops
        for rule in ("sgd", "adagrad"):
            loop, w = loops.STEPS[rule].serial, np.ones((2, 4))
            slot = np.ones((2, 4)), w[:, :0]
            loop(w, np.array([1]), np.full((1, 4), 3.0), *slot, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0)
            print(rule, w[1, 0], sum(loop.stats.cache_hits.values()))
    """
    expected = 1 - 0.5 * 3, 1 - 0.5 * 3 / 10**0.5
    for hits in (0, 1):
        found = run(script, NUMBA_CACHE_DIR=str(tmp_path), OMP_NUM_THREADS="1").split()
        assert found == ["sgd", str(expected[0]), str(hits), "adagrad", str(expected[1]), str(hits)]


def test_interfaces_are_imported_without_a_compiler():
    imports = "distrec.optim.sparse, distrec.kernels.dispatch, distrec.kernels.optimizer, distrec.models.scoring"
    imports += ", distrec.evaluation.ranking"
    run(f"import sys, {imports}; assert not {{'numba', 'llvmlite', 'triton'}} & {{*sys.modules}}")


@pytest.mark.parametrize("layer", ["default", "workqueue"])
@pytest.mark.long
def test_a_fork_of_a_process_that_has_used_threads_and_several_python_threads_at_once(layer):
    """Fork is Python's default way to start processes on Linux until 3.14."""
    run(
        """
        steps()
        child = os.fork()
        if child == 0:
            steps()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        steps()
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
