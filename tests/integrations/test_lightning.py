"""SelectionCallback: Lightning trains on the selection, re-selects on time, and resumes to the same bits."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fastqat as fq
from fastqat import InputError
from fastqat.selection import RS2, IndexedDataset

pl = pytest.importorskip("lightning.pytorch")

from fastqat.integrations.lightning import SelectionCallback  # noqa: E402 (needs Lightning)


class Module(pl.LightningModule):
    """A classifier that notes which samples it met in which epoch."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.met = net, []

    def training_step(self, batch, _):
        x, y, index = batch
        self.met.append((self.current_epoch, index.tolist()))
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(root: Path, epochs: int, checkpoint: str | None = None, workers: int = 0):
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(60, 8), torch.arange(60) % 3)
    teacher = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    module = Module(fq.quantize(copy.deepcopy(teacher), "w4a32"))
    selection = SelectionCallback(fq.methods.ACS(data, module.net, teacher, epochs=4, interval=2, fraction=0.2))
    loader = DataLoader(IndexedDataset(data), 4, sampler=selection.sampler, num_workers=workers)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_epochs=epochs, callbacks=[selection], default_root_dir=root, **quiet)
    trainer.fit(module, loader, ckpt_path=checkpoint, **({} if checkpoint is None else {"weights_only": True}))
    return trainer, module, selection.policy


def samples(module: Module, epoch: int) -> list[int]:
    return sorted(i for at, batch in module.met if at == epoch for i in batch)


@pytest.mark.parametrize("workers", [0, 1])
def test_every_epoch_trains_on_the_selection(tmp_path, workers):
    _, module, policy = fit(tmp_path, 4, workers=workers)
    assert samples(module, 0) == samples(module, 1) != samples(module, 2) == samples(module, 3)
    assert samples(module, 3) == sorted(policy.selection.indices.tolist()) and len(samples(module, 3)) == 12
    assert policy.scoring_forwards == 3 * 60  # two selections, the teacher in the second


def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path):
    _, whole, _ = fit(tmp_path, 4)
    trainer, _, _ = fit(tmp_path, 3)
    trainer.save_checkpoint(tmp_path / "three.ckpt")
    _, resumed, _ = fit(tmp_path, 4, str(tmp_path / "three.ckpt"))
    assert resumed.met == [seen for seen in whole.met if seen[0] == 3]
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, resumed.net.state_dict()[name]), name


def test_a_policy_that_shards_is_refused():
    policy = RS2(TensorDataset(torch.zeros(8, 1), torch.arange(8) % 2), fraction=0.5, num_replicas=2)
    with pytest.raises(InputError, match="num_replicas=1; got 2"):
        SelectionCallback(policy)
