"""A GPU changes nothing but the speed: the same tables, losses and metrics as on the CPU, alone and through Ray.

Sums have another order there, and exponentials other last digits: the tolerance is that of other numbers of workers,
ten times as wide.
"""

import numpy as np
import pytest
import torch

from distrec.data.dataset import Part
from distrec.training.driver import ray_running, train
from distrec.training.trainer import Trainer
from tests.conftest import changed
from tests.gpu import on_gpu
from tests.train.test_workers import CASES, COARSER, STEPS

pytestmark = on_gpu
STORED = {"stored_as_bfloat16": {"model": {"bfloat16": True}}}
WIDER = COARSER | {"stored_as_bfloat16": 1000}  # rounded at random: which way can turn on float32's last digit


def trained(config, dataset, device):
    """20 steps: the trainer and the losses."""
    trainer, losses = Trainer(config, dataset, torch.device(device)), []
    batches = [trainer.source.batch(*divmod(k, trainer.source.steps)) for k in range(STEPS)]
    for batch, following in zip(batches, [*batches[1:5], None, *batches[6:], None], strict=True):  # placed ahead or not
        losses.append(trainer.step(batch, following).item() / batch.pairs)
    return trainer, losses


@pytest.mark.parametrize("name", [*CASES, *STORED])
def test_steps_metrics_and_checkpoint(small, dataset, tmp_path, name):
    config = changed(small, **(CASES | STORED)[name])
    wider = WIDER.get(name, 1)
    (cpu, cpu_losses), (gpu, gpu_losses) = (trained(config, dataset, device) for device in ("cpu", "cuda"))
    assert np.allclose(gpu_losses, cpu_losses, rtol=2e-5 * wider)
    assert gpu.evaluate(Part.TEST).means() == pytest.approx(cpu.evaluate(Part.TEST).means(), abs=1e-4 * wider)
    gpu.save(tmp_path, {})
    loaded = Trainer(config, dataset, torch.device("cpu"))
    loaded.load(tmp_path)
    for table, part in cpu.parts.items():
        expected, found = part.table.flush().float(), loaded.parts[table].table.flush().float()
        assert (found - expected).abs().max() <= 1e-4 * wider, table
        for key, value in part.optimizer.state().items():
            torch.testing.assert_close(
                loaded.parts[table].optimizer.state()[key], value, rtol=1e-3 * wider, atol=1e-4 * wider
            )


def test_a_batch_arrives_whole(small, dataset):
    trainer = Trainer(changed(small, loss={"log_q": True}), dataset, torch.device("cuda"))
    for batch in trainer.source.batches(0, 0, 3):
        for name, tensor in trainer._placed(batch).items():
            assert tensor.device.type == "cuda" and np.array_equal(tensor.cpu().numpy(), getattr(batch, name)), name


@pytest.mark.timeout(240)
@pytest.mark.parametrize("shared", [True, False])
def test_a_run_through_ray(small, tmp_path, shared):
    """On the GPU its batches come from several actors, one for the CPU."""
    config = changed(small, sampling={"shared": shared}, tracking={"enabled": False}, train={"epochs": 3})
    with ray_running(workers=1):
        cpu, gpu = (
            train(changed(config, train={"device": device}, run={"dir": str(tmp_path / device)}))
            for device in ("cpu", "cuda")
        )
    assert gpu.loss == pytest.approx(cpu.loss, rel=1e-5)
    assert gpu.metrics == pytest.approx(cpu.metrics, abs=1e-3)
