"""Several processes as torchrun starts them, but from one that has imported torch already: milliseconds each instead of seconds."""

import faulthandler
import multiprocessing as mp
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

_SERVER = mp.get_context("forkserver")
_SERVER.set_forkserver_preload(["fastqat.cli", "fastqat.train.run", "torch._dynamo", "sklearn.datasets"])  # DistributedDataParallel: dynamo


class Ranks:
    """`size` processes that run ``function(*args)`` with the environment of torchrun; their output goes to files in `folder`.

    An int that the function returns is the exit code.
    """

    def __init__(self, size: int, folder: Path, function: Callable, *args):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # torchrun's, which outlives the processes
        self.processes = [_SERVER.Process(target=_work, args=(rank, size, self.store.port, folder, function, args)) for rank in range(size)]
        for process in self.processes:
            process.start()

    def kill(self, rank: int) -> None:
        os.kill(self.processes[rank].pid, signal.SIGKILL)

    def wait_for(self, path: Path) -> None:
        """Until `path` is there."""
        deadline = time.monotonic() + 60
        while not path.exists():
            assert time.monotonic() < deadline and any(process.is_alive() for process in self.processes), self.output()
            time.sleep(0.002)

    def codes(self, timeout: float = 60) -> list[int]:
        """Exit codes, by rank."""
        deadline = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        hanging = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        for rank in hanging:
            self.kill(rank)
        assert not hanging, f"processes {hanging} hang\n{self.output()}"
        return [process.exitcode for process in self.processes]

    def output(self) -> str:
        """What all of them wrote, rank by rank."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("rank*.log")))


def _work(rank: int, size: int, port: int, folder: Path, function: Callable, args: tuple) -> None:
    log = os.open(folder / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    settings = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    settings["TORCHELASTIC_USE_AGENT_STORE"] = True
    os.environ.update({name: str(value) for name, value in settings.items()})
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(25)  # where a process that hangs is
    code = function(*args)
    sys.exit(code if isinstance(code, int) else 0)
