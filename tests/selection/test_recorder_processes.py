"""`DynamicsRecorder` in processes that share the batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fastqat._errors import InputError
from fastqat.selection import DynamicsRecorder, ScoreTable

from .recordings import N, batches, record, same


def shared(rank: int, interval: int) -> DynamicsRecorder:
    """This rank's part of all batches, shared every `interval` steps."""
    recorder = DynamicsRecorder(N)
    for step, (index, logits, targets) in enumerate(batches()):
        part = slice(0, 3) if rank == 0 else slice(3, None)
        recorder.update(index[part], logits[part], targets[part])
        recorder.update(index[part], -logits[part], targets[part], bits=4)
        if (step + 1) % interval == 0:
            recorder.synchronise()
    return recorder


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    late = shared(rank, 10**6)
    with pytest.raises(InputError, match="call synchronise"):
        late.table()
    with pytest.raises(InputError, match="call synchronise"):
        late.state_dict()
    late.synchronise()
    late.table().save(f"{folder}/late-{rank}.safetensors")
    often = shared(rank, 5)
    often.synchronise()
    often.synchronise()
    often.table().save(f"{folder}/often-{rank}.safetensors")
    record(DynamicsRecorder(N, distributed=False), batches()).table().save(f"{folder}/alone-{rank}.safetensors")
    dist.destroy_process_group()


def test_processes_that_share_the_batches_end_with_the_table_of_one(tmp_path: Path):
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    alone = record(DynamicsRecorder(N), batches())
    same(ScoreTable.load(tmp_path / "alone-0.safetensors"), alone.table())
    for index, logits, targets in batches():
        alone.update(index, -logits, targets, bits=4)
    for rank in range(2):
        for name in ("late", "often"):
            same(ScoreTable.load(tmp_path / f"{name}-{rank}.safetensors"), alone.table())
