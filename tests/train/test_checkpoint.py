"""Checkpoints: whole or absent, damage found, the one before is used, other architectures refused, full disk survived."""

import errno
import os
import resource
from pathlib import Path

import pytest
import torch

from fastqat._errors import CheckpointError
from fastqat.train.checkpoint import CheckpointStore, load_state, load_weights, save_state
from fastqat.train.models import make_model


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path, told) -> CheckpointStore:
    store = CheckpointStore(tmp_path, "epoch", told.append)
    for epoch in range(5):
        store.save(epoch, {"epoch": epoch, "weights": torch.arange(1000.0) + epoch})
    return store


def test_the_two_latest_are_kept(store):
    assert [path.name for path in store.paths()] == ["epoch_0003.pt", "epoch_0004.pt"]
    assert store.latest()["epoch"] == 4


def test_checkpoints_of_an_older_longer_run_do_not_outlive_the_first_of_this_one(store):
    store.save(0, {"epoch": 0})
    assert [path.name for path in store.paths()] == ["epoch_0000.pt"]


def test_order_is_by_number_beyond_four_digits(tmp_path, told):
    store = CheckpointStore(tmp_path, "epoch", told.append)
    for epoch in (9_999, 10_000):
        store.save(epoch, {"epoch": epoch})
    assert store.latest()["epoch"] == 10_000


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit_of_the_weights(path: Path) -> None:
    content = bytearray(path.read_bytes())
    at = content.find(torch.tensor([500.0 + 4]).numpy().tobytes())
    assert at > 0
    content[at] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def another_file(path: Path) -> None:
    path.write_text("not a checkpoint")


@pytest.mark.parametrize("damage", [truncate, flip_a_bit_of_the_weights, empty, another_file])
def test_damaged_checkpoint_is_told_and_the_one_before_used(store, told, damage):
    damage(store.path(4))
    assert store.latest()["epoch"] == 3
    assert len(told) == 1 and "epoch_0004.pt is" in told[0] and "before it" in told[0] and "\n" not in told[0]
    damage(store.path(3)) if damage is not flip_a_bit_of_the_weights else truncate(store.path(3))
    with pytest.raises(CheckpointError, match="every checkpoint .* is damaged; start again with --overwrite"):
        store.latest()


def test_missing_file_and_foreign_content(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_state(tmp_path / "no.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(CheckpointError, match="holds a Tensor"):
        load_state(tmp_path / "tensor.pt")


def test_checkpoints_cannot_run_code(tmp_path):
    torch.save({"call": os.system}, tmp_path / "code.pt")
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        load_state(tmp_path / "code.pt")


def test_weights_of_another_architecture():
    state = make_model("resnet20", 10, (3, 32, 32)).state_dict()
    with pytest.raises(CheckpointError, match=r"x\.pt is of another architecture: it has layer1\.1") as raised:
        load_weights(make_model("resnet8", 10, (3, 32, 32)), state, "x.pt")
    assert "\n" not in str(raised.value)


def test_full_disk_leaves_the_older_checkpoint(store, monkeypatch):
    def write(self: Path, data: bytes) -> int:
        with open(self, "wb") as handle:
            handle.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(OSError, match=r"cannot write .*epoch_0005\.pt: No space left on device; free some space"):
        store.save(5, {"epoch": 5, "weights": torch.zeros(1000)})
    assert store.latest()["epoch"] == 4 and len(list(store.folder.iterdir())) == 2


def test_a_real_size_limit_leaves_the_older_checkpoint(store):
    """The kernel refuses the write (EFBIG) as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="cannot write"):
            save_state(store.path(4), {"epoch": 99, "weights": torch.zeros(1000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_state(store.path(4))["epoch"] == 4 and not list(store.folder.glob(".*"))
