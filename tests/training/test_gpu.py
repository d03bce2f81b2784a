"""A GPU gives the tables, losses and metrics of the CPU, in one process and through Ray.

Sums have another order on a GPU, and exponentials differ in their last digits: the tolerance is ten times that of other
numbers of workers.
"""

import numpy as np
import pytest
import torch

from distrec.data.dataset import Part
from distrec.evaluation.evaluator import evaluate_part
from distrec.losses import Loss, losses
from distrec.training.trainer import Trainer
from tests.conftest import changed
from tests.kernels.gpu import on_gpu
from tests.training.test_workers import CASES, COARSER, STEPS

pytestmark = on_gpu
STORED = {"stored_as_bfloat16": {"model": {"bfloat16": True}}}
TOLERANCE = COARSER | {"stored_as_bfloat16": 1000}  # random rounding can go either way for float32's last digit


def trained(config, dataset, device):
    """Take 20 steps, some with the next batch prefetched. Return the trainer and the losses."""
    trainer, losses = Trainer(config, dataset, torch.device(device)), []
    batches = [trainer.source.batch(*divmod(k, trainer.source.steps)) for k in range(STEPS)]
    for batch, following in zip(batches, [*batches[1:5], None, *batches[6:], None], strict=True):
        losses.append(trainer.step(batch, following).item())
    return trainer, losses


@pytest.mark.parametrize("name", [*CASES, *STORED])
def test_steps_metrics_and_checkpoint(small, dataset, tmp_path, name):
    config = changed(changed(small, **(CASES | STORED)[name]), train={"capture": False})
    factor = TOLERANCE.get(name, 1)
    (cpu, cpu_losses), (gpu, gpu_losses) = (trained(config, dataset, device) for device in ("cpu", "cuda"))
    assert np.allclose(gpu_losses, cpu_losses, rtol=2e-5 * factor)
    expected, found = (
        evaluate_part(trainer.scorer, dataset, Part.TEST, config.eval, trainer.exchange).means()
        for trainer in (cpu, gpu)
    )
    assert found == pytest.approx(expected, abs=1e-4 * factor)
    gpu.save(tmp_path, {})
    loaded = Trainer(config, dataset, torch.device("cpu"))
    loaded.load(tmp_path)
    for table, optimizer in cpu.optimizers.items():
        expected, found = cpu.tables[table].flush().float(), loaded.tables[table].flush().float()
        assert (found - expected).abs().max() <= 1e-4 * factor, table
        state = loaded.optimizers[table].state()
        for key, value in optimizer.state().items():
            torch.testing.assert_close(state[key], value, rtol=1e-3 * factor, atol=1e-4 * factor)


def test_a_batch_is_copied_whole(small, dataset):
    trainer = Trainer(changed(small, loss={"log_q": True}, train={"capture": False}), dataset, torch.device("cuda"))
    for batch in trainer.source.batches(0, 0, 3):
        for name, tensor in trainer.forward.arrays(batch).items():
            assert tensor.device.type == "cuda" and np.array_equal(tensor.cpu().numpy(), getattr(batch, name)), name


@pytest.mark.timeout(240)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_through_ray(ray_cluster, small, tmp_path, shared, workers):
    """The batches of a GPU come from several Ray Data actors, those of the CPU from one."""
    if torch.cuda.device_count() < workers:
        pytest.skip(f"needs {workers} GPUs")
    train = {"epochs": 3, "workers": workers}
    config = changed(small, sampling={"shared": shared}, tracking={"enabled": False}, train=train)
    from distrec.training import driver

    cpu, gpu = (
        driver.train(changed(config, train={"device": device}, run={"dir": str(tmp_path / device)}))
        for device in ("cpu", "cuda")
    )
    assert gpu.loss == pytest.approx(cpu.loss, rel=1e-5)
    assert gpu.metrics == pytest.approx(cpu.metrics, abs=1e-3)


@losses.register("waits_for_the_gpu")
class Waits(Loss):
    """A loss that no graph can hold: it reads a number on the host."""

    reads = ("positive_B", "negative_BN")

    def per_pair(self, step):
        assert step.positive_B.max().item() < 1e9
        return (step.negative_BN - step.positive_B[:, None]).sigmoid().mean(1)


def by_epochs(config, dataset):
    """Train two epochs on the GPU; return the trainer and the losses."""
    trainer = Trainer(config, dataset, torch.device("cuda"))
    source, losses = trainer.source, []
    for epoch in range(2):
        batches = iter(source.batches(epoch, 0, source.steps))
        losses.append(trainer.train_epoch(epoch, 0, batches, lambda done, loss: None))
    return trainer, losses


def test_a_failed_capture_leaves_the_process_usable(small, dataset):
    with pytest.warns(UserWarning, match="cannot be captured"):
        trainer, losses = by_epochs(changed(small, loss={"name": "waits_for_the_gpu"}), dataset)
    assert np.isfinite(losses).all()
    assert trainer.device_steps is not None and not trainer.device_steps.captures
    torch.cuda.empty_cache()
    assert torch.rand(8, device="cuda").sum().item() > 0
    following, losses = by_epochs(small, dataset)
    assert following.device_steps.captures and following.device_steps._graphs
    assert losses == pytest.approx(by_epochs(changed(small, train={"capture": False}), dataset)[1], rel=1e-4)


@pytest.mark.parametrize("optim", [{}, {"rule": "adam", "decay": {"scope": "in_batch", "strength": 0.1}}], ids=str)
def test_steps_do_not_wait_for_the_gpu(small, dataset, monkeypatch, optim):
    """An operation that synchronises is an error from the first step of an epoch to its last, pairs sent meanwhile."""
    monkeypatch.setattr("distrec.training.device_steps._STEPS", 3)
    trainer, _ = by_epochs(changed(small, optim=optim, train={"epochs": 3}), dataset)  # captures
    steps = trainer.source.steps
    assert steps > 6

    def emit(done, loss):
        torch.cuda.set_sync_debug_mode("default" if done == steps else "error")

    try:
        trainer.train_epoch(2, 0, iter(trainer.source.batches(2, 0, steps)), emit)
    finally:
        torch.cuda.set_sync_debug_mode("default")
