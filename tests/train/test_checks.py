"""What would fail in the middle of a run is said before anything is written."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import fastqat
from fastqat._errors import FastqatError, InputError
from fastqat.train import checks
from fastqat.train.models import MODELS
from fastqat.train.run import train


def quiet(line: str) -> None:
    """Swallow the log."""


class Gives(nn.Module):
    """A model that does `answer` in training, and gives logits otherwise."""

    def __init__(self, answer, always=False):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 10))
        self.answer, self.always = answer, always

    def forward(self, x):
        logits = self.layers(x.flatten(1))
        return self.answer(logits) if self.training or self.always else logits


def raises(logits):
    raise AssertionError("Wrong image height! Expected 224 but got 8!")


UNFIT = {
    "auxiliary logits in training": (lambda: Gives(lambda z: (z, z)), "got tuple in training"),
    "raises in training": (lambda: Gives(raises), r"does not take samples of shape \(1, 8, 8\) in training \(Wrong image height"),
    "raises in evaluation": (lambda: Gives(raises, always=True), r"in evaluation \(Wrong image height"),
    "other classes": (lambda: Gives(lambda z: z[:, :7], always=True), r"got \(2, 7\) in evaluation"),
    "a map of logits": (lambda: Gives(lambda z: z[..., None], always=True), r"got \(2, 10, 1\)"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_model_that_cannot_be_trained_is_refused(tiny, monkeypatch, case):
    make, message = UNFIT[case]
    monkeypatch.setitem(MODELS, "unfit", lambda classes, channels: make())
    with pytest.raises(InputError, match=message) as raised:
        train(replace(tiny, model="unfit"), say=quiet)
    assert "\n" not in str(raised.value) and not tiny.run_dir.exists()


@pytest.mark.parametrize("name", ["vit_b_16", "googlenet", "inception_v3"])
def test_torchvision_models_that_do_not_fit(tiny, name):
    pytest.importorskip("torchvision")
    with pytest.raises(InputError, match=f"model '{name}'"):
        train(replace(tiny, model=name), say=quiet)
    assert not tiny.run_dir.exists()


def test_the_trial_changes_nothing(tiny):
    told: list[dict] = []
    for folder, check in (("with", checks.check_model), ("without", lambda *args: None)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fastqat.train.run.check_model", check)
            told.append(train(replace(tiny, epochs=1, runs=tiny.runs / folder), say=quiet))
    assert all(told[0][key] == told[1][key] for key in told[0] if "seconds" not in key)


def test_an_environment_that_is_not_that_of_torchrun_is_refused(tiny, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"WORLD_SIZE=2, but the processes cannot find each other .* start them with torchrun"):
        train(tiny, say=quiet)
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(InputError, match="WORLD_SIZE=two; torchrun sets it"):
        train(tiny, say=quiet)
    assert not tiny.run_dir.exists()


def test_a_backend_that_cannot_run_is_refused(tiny):
    name = next(name for name in ("cuda", "triton") if name not in fastqat._backend.backends_for("fake_quant", "cpu"))
    with fastqat.use_backend(name), pytest.raises(FastqatError, match=f"backend '{name}' was asked for"):
        train(tiny, say=quiet)
    assert not tiny.run_dir.exists()


def test_a_bad_cpu_level_is_refused(tiny, monkeypatch):
    native = pytest.importorskip("fastqat._C")

    def bad():
        raise RuntimeError("parse, ./csrc/cpu/levels.cpp:30, unknown CPU level 'foo'; choose one of avx2 baseline\nException raised from")

    monkeypatch.setattr(checks, "NATIVE_REASON", None)
    monkeypatch.setattr(native, "cpu_level", bad)
    with pytest.raises(FastqatError, match=r"^FASTQAT_CPU_LEVEL: unknown CPU level 'foo'; choose one of avx2 baseline$"):
        train(replace(tiny, device="cpu"), say=quiet)
    assert not tiny.run_dir.exists()
    assert torch.get_num_threads() == 1
