"""TeacherCache on disk: what it holds, when it is used again, and when not."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from fastqat._errors import InputError
from fastqat._tensor_data import TensorData
from fastqat.selection import IndexedDataset, TeacherCache, score_dataset
from fastqat.selection.scoring.fingerprint import data_fingerprint, model_fingerprint
from fastqat.selection.teachers.logit_file import LogitFile

from .scoring import CLASSES, SIZE, Calls, Counting, Mappings, Stream, data, net

NAMES = ["evs", "ds", "res"]


def run(cache, dataset=None, **options):
    return score_dataset(net(), data() if dataset is None else dataset, NAMES, teacher=cache, batch_size=32, **options)


def parts(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_second_pass_and_a_second_run_read_the_file_and_give_the_same_bits(tmp_path, dtype):
    teacher, path = Counting(net(1)), tmp_path / "sub" / "teacher.safetensors"
    cache = TeacherCache(teacher, path=path, dtype=dtype)
    cold = run(cache)
    assert teacher.samples == cache.forwards == SIZE and cache.complete and cache.nbytes == 0 and parts(path.parent) == [path.name]
    other = TeacherCache(Counting(net(1)), path=path, dtype=dtype)
    for again in (run(cache), run(other), run(TeacherCache(teacher, path=path, dtype=dtype))):
        assert all(torch.equal(cold[name], again[name]) for name in NAMES)
    assert teacher.samples == SIZE and other.forwards == 0
    with torch.no_grad():
        want = net(1).eval()(data().tensors[0])
    logits = cache.logits
    assert logits.dtype == dtype and torch.equal(load_file(path)["logits"], logits)
    torch.testing.assert_close(logits.float(), want, rtol=2**-8 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)
    assert path.stat().st_size == 4096 + SIZE * CLASSES * dtype.itemsize
    batches = score_dataset(net(), data(), NAMES, teacher=cache, batch_size=10)
    torch.testing.assert_close(batches["ds"], cold["ds"], rtol=1e-5, atol=1e-6)
    assert cache.forwards == SIZE


def plain(model, x, *, by=(lambda x: x * SCALE)):
    return (lambda outer: model(by(outer)))(x)


SCALE = 1.0


def test_another_process_uses_the_file(tmp_path):
    run(TeacherCache(net(1), path=tmp_path / "t"), forward=plain)
    code = """
import sys, torch
from fastqat.selection import TeacherCache
from tests.selection.test_teacher_disk import net, plain, run
cache = TeacherCache(net(1), path=sys.argv[1])
torch.save(run(cache, forward=plain)["ds"], sys.argv[2])
assert cache.forwards == 0, cache.forwards
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "t", tmp_path / "ds"], check=True, cwd=Path(__file__).parents[2])
    assert torch.equal(torch.load(tmp_path / "ds"), run(net(1))["ds"])


def changed_data():
    x, y = (t.clone() for t in data().tensors)
    x[-1, -1] += 1
    return TensorDataset(x, y)


def changed_teacher():
    teacher = net(1)
    teacher[1].running_mean += 1
    return teacher


def under_autocast(path):
    with torch.autocast("cpu", torch.bfloat16):
        return run(TeacherCache(net(1), path=path))


CHANGES = {
    "changed since: autocast": under_autocast,
    "changed since: data": lambda path: run(TeacherCache(net(1), path=path), changed_data()),
    "changed since: teacher": lambda path: run(TeacherCache(changed_teacher(), path=path)),
    "changed since: forward": lambda path: run(TeacherCache(net(1), path=path), forward=lambda model, x: model(x)),
    "it does not hold bfloat16 logits": lambda path: run(TeacherCache(net(1), path=path, dtype=torch.bfloat16)),
    "changed since: data, teacher": lambda path: run(TeacherCache(net(3), path=path, key="mine")),
}


@pytest.mark.parametrize("reason", CHANGES)
def test_another_key_is_computed_again_and_said(tmp_path, reason):
    path = tmp_path / "t"
    run(TeacherCache(net(1), path=path))
    with pytest.warns(UserWarning, match=f"the teacher logits in {path} are computed again: .*{reason}"):
        table = CHANGES[reason](path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(CHANGES[reason](path)["ds"], table["ds"])
    assert parts(tmp_path) == ["t"]


def test_weights_that_change_in_place_are_noticed_by_the_same_cache(tmp_path):
    teacher = net(1)
    cache = TeacherCache(teacher, path=tmp_path / "t")
    first = run(cache)
    with torch.no_grad():
        teacher[0].weight.mul_(2)
    with pytest.warns(UserWarning, match="changed since: teacher"):
        second = run(cache)
    assert cache.forwards == 2 * SIZE and torch.equal(second["ds"], run(teacher)["ds"]) and not torch.equal(first["ds"], second["ds"])


def test_logits_in_memory_notice_another_teacher_and_other_data():
    teacher = net(1)
    cache = TeacherCache(teacher)
    for _ in range(2):
        first = run(cache)
    assert cache.forwards == SIZE
    teacher[0].weight.data.mul_(2)
    for dataset, reason in ((data(), "teacher"), (changed_data(), "data")):
        with pytest.warns(UserWarning, match=f"the teacher logits in memory are computed again: changed since: {reason}"):
            second = run(cache, dataset)
        assert torch.equal(second["ds"], run(teacher, dataset)["ds"]) and not torch.equal(first["ds"], second["ds"])
    assert cache.forwards == 3 * SIZE and cache.complete


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"garbage", lambda b: b[:100], lambda b: b"x" + b[1:], lambda b: b""])
def test_a_damaged_file_is_replaced(tmp_path, damage):
    path = tmp_path / "t"
    want = run(TeacherCache(net(1), path=path))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="it is damaged"):
        assert torch.equal(run(TeacherCache(net(1), path=path))["ds"], want["ds"])


def test_a_pass_that_breaks_off_leaves_nothing_and_an_older_file(tmp_path):
    teacher, calls, path = net(1), Calls(), tmp_path / "t"

    def forward(model, x):
        calls.count += model is teacher
        if calls.count == 3:
            raise RuntimeError("out of memory")
        return model(x)

    with pytest.raises(RuntimeError, match="out of memory"):
        run(TeacherCache(teacher, path=path), forward=forward)
    assert parts(tmp_path) == []
    calls.count = 10
    cache = TeacherCache(teacher, path=path)
    assert torch.equal(run(cache, forward=forward)["ds"], run(teacher)["ds"])
    calls.count = 2
    with pytest.raises(RuntimeError, match="out of memory"), pytest.warns(UserWarning, match="changed since: data"):
        run(cache, changed_data(), forward=forward)
    assert parts(tmp_path) == ["t"] and not cache.complete


def test_runs_beside_another_with_the_same_file_disturb_nothing(tmp_path):
    """One fails and one is done while the first is in its second batch."""
    path, calls, want = tmp_path / "t", Calls(3), run(net(1))

    def forward(model, x):
        calls.count += 1
        if calls.count == 3:
            with pytest.raises(InputError, match="must have the same classes"):
                score_dataset(net(0, 7), data(), "ds", teacher=TeacherCache(net(1), path=path), batch_size=32, forward=forward)
            assert len(parts(tmp_path)) == 1
            assert torch.equal(run(TeacherCache(net(1), path=path), forward=forward)["ds"], want["ds"])
        return model(x)

    cache = TeacherCache(net(1), path=path)
    for _ in range(2):
        assert torch.equal(run(cache, forward=forward)["ds"], want["ds"]) and parts(tmp_path) == ["t"] and cache.forwards == SIZE


def test_a_stream_needs_a_name_for_its_content(tmp_path):
    path = tmp_path / "t"
    with pytest.raises(InputError, match="the content of Stream cannot be told .* data_key="):
        run(TeacherCache(net(1), path=path), Stream())
    cache = TeacherCache(net(1), path=path, key="stream of 103")
    cold = run(cache, Stream())
    assert torch.equal(run(cache, Stream())["ds"], cold["ds"]) and cache.forwards == SIZE
    named = TeacherCache(net(1), path=path)
    assert torch.equal(run(named, Stream(), data_key="stream of 103")["ds"], cold["ds"]) and named.forwards == 0
    with pytest.warns(UserWarning, match="it has 103 samples and the data set 50"):
        run(cache, data(50))


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, monkeypatch):
    class Full:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            raise OSError(28, "No space left on device")

    created = LogitFile.create_part
    monkeypatch.setattr(LogitFile, "create_part", lambda self, *part: (created(self, *part), setattr(self, "_file", Full(self._file))))
    with pytest.raises(OSError, match="No space left on device; free some space"):
        run(TeacherCache(net(1), path=tmp_path / "t"))
    assert parts(tmp_path) == []


def test_options_that_make_no_sense_are_refused(tmp_path):
    for options, message in (({"dtype": torch.float16}, "float32 or torch.bfloat16"), ({"path": tmp_path / "t"}, "leave out path=")):
        with pytest.raises(InputError, match=message):
            TeacherCache(torch.zeros(3, 4), **options)
    half = TeacherCache(net(1), dtype=torch.bfloat16)
    cold = run(half)
    assert half.nbytes == 2 * SIZE * CLASSES and torch.equal(run(half)["ds"], cold["ds"]) and half.logits.dtype == torch.bfloat16


class Pictures(Dataset):
    """Draws at random, as augmentation does, behind a transform."""

    def __init__(self, transform=None, shift=0.0):
        self.transform, self.shift, self.targets = transform, shift, list(range(40))

    def __len__(self):
        return 40

    def __getitem__(self, i):
        return torch.rand(3) + i + self.shift, self.targets[i]


def test_fingerprints_of_data_change_with_what_they_see():
    x, y = data().tensors
    sets = [
        *(data(), changed_data(), TensorDataset(x), Subset(data(), [0, 1]), Subset(data(), [1, 0]), ConcatDataset([data(), data()])),
        *(IndexedDataset(data()), TensorData(x[:, :, None], y), TensorData(x[:, :, None], y, torch.zeros(8), torch.ones(8))),
        *(Pictures(), Pictures(shift=1), Pictures(transform=net()), Mappings("labels"), Mappings("label")),
    ]
    prints = [data_fingerprint(each) for each in sets]
    assert len(set(prints)) == len(sets)
    dice = torch.get_rng_state()
    assert prints == [data_fingerprint(each) for each in sets] and torch.equal(dice, torch.get_rng_state())
    dataset = data()
    before = data_fingerprint(dataset)
    dataset.tensors[0][0, 0] += 1
    assert data_fingerprint(dataset) != before == data_fingerprint(data())


def test_a_tensor_that_takes_the_place_of_another_is_seen():
    dataset, model, prints = data(), net(), set()
    for value in range(5):
        dataset.tensors = (torch.full((10, 2), float(value)), torch.zeros(10))
        model[0].weight = torch.nn.Parameter(torch.full((16, 8), float(value)))
        prints |= {data_fingerprint(dataset), model_fingerprint(model)}
    assert len(prints) == 10


def test_fingerprints_of_models_see_weights_buffers_and_layers():
    models = [net(), net(1), changed_teacher(), net().append(torch.nn.ReLU()), net().to(torch.bfloat16)]
    assert len({model_fingerprint(model) for model in models}) == 5 and model_fingerprint(net(1)) == model_fingerprint(net(1))
    swapped = net()
    before, swapped[2] = model_fingerprint(swapped), torch.nn.GELU()
    assert model_fingerprint(swapped) != before == model_fingerprint(net())
    hidden = net()
    hidden[0].weight.data += 1  # as fused optimizers do it: autograd's counter stands still
    assert len({model_fingerprint(hidden), model_fingerprint(net())}) == 2
    with torch.inference_mode():
        frozen = net()
        first = model_fingerprint(frozen)
        frozen[0].weight += 1
    assert model_fingerprint(frozen) != first == model_fingerprint(net())
