"""Trainers that shard a sampler themselves: every selected sample once per epoch, up to their own padding."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fastqat.selection import CoresetSampler
from tests.processes import Ranks

EPOCHS = 2


def sampler_of(size: int, **place: int) -> CoresetSampler:
    """A selection of `size` of 60 samples."""
    return CoresetSampler(torch.arange(3, 3 + size), seed=5, **place)


def data() -> TensorDataset:
    return TensorDataset(torch.arange(60))


def met(folder: Path, ranks: Ranks) -> list[list[list[int]]]:
    """What each rank saw in each epoch."""
    codes = ranks.codes()
    assert codes == [0] * len(codes), ranks.output()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(len(codes))]


def through_accelerate(folder: Path, size: int, even: bool) -> None:
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(even_batches=even))
    loader = accelerator.prepare(DataLoader(data(), 4, sampler=sampler_of(size)))
    seen = [[int(i) for (batch,) in loader for i in batch] for _ in range(EPOCHS)]
    (folder / f"{accelerator.process_index}.json").write_text(json.dumps(seen))


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("size", [16, 21])
def test_accelerate_deals_the_batches(tmp_path, size, even):
    pytest.importorskip("accelerate")
    seen = met(tmp_path, Ranks(2, tmp_path, through_accelerate, tmp_path, size, even))
    for epoch in range(EPOCHS):
        sampler = sampler_of(size)
        sampler.begin_epoch(epoch)
        order = sampler.order().tolist()
        counts = Counter(seen[0][epoch] + seen[1][epoch])
        assert set(counts) == set(order)
        twice = sum(counts.values()) - size
        assert twice == (3 if even and size == 21 else 0)
        assert seen[0][epoch][:4] == order[:4] and seen[1][epoch][:4] == order[4:8], "this epoch's order, batch by batch"


def through_lightning(folder: Path, size: int, wraps: bool) -> None:
    import lightning.pytorch as pl
    from torch import nn

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.seen = nn.Linear(1, 1), [[] for _ in range(EPOCHS)]

        def training_step(self, batch, _):
            self.seen[self.current_epoch] += batch[0].tolist()
            return self.net(batch[0].float()[:, None]).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 1e-6)

    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    place = {"accelerator": "cpu", "strategy": "ddp", "devices": 2, "default_root_dir": folder}
    trainer, module = pl.Trainer(max_epochs=EPOCHS, use_distributed_sampler=wraps, **place, **quiet), Module()
    own = {} if wraps else {"num_replicas": 2, "rank": trainer.global_rank}
    trainer.fit(module, DataLoader(data(), 4, sampler=sampler_of(size, **own)))
    (folder / f"{trainer.global_rank}.json").write_text(json.dumps(module.seen))


@pytest.mark.parametrize("wraps", [True, False])
def test_lightning_deals_the_samples(tmp_path, wraps):
    pytest.importorskip("lightning")
    seen = met(tmp_path, Ranks(2, tmp_path, through_lightning, tmp_path, 21, wraps))
    for epoch in range(EPOCHS):
        sampler = sampler_of(21)
        sampler.begin_epoch(epoch)
        order = sampler.order().tolist()
        assert set(seen[0][epoch]) | set(seen[1][epoch]) == set(order) and len(seen[0][epoch]) == len(seen[1][epoch]) == 11
        assert wraps or (seen[0][epoch] == order[::2] and seen[1][epoch][:10] == order[1::2]), "Lightning's own order is another"
