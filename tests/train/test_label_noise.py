"""Label noise: exact shares, the same labels everywhere but in the test set, the oracle's exception, and what is logged of it."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from fastqat._errors import InputError
from fastqat.data import TensorData, fingerprint, relabelled, subset
from fastqat.selection.datasets import labels_of
from fastqat.selection.table import ScoreTable
from fastqat.train.config import TrainConfig
from fastqat.train.float_stage import float_key, teacher_config
from fastqat.train.label_noise import with_wrong_labels
from fastqat.train.pool import part_of, prepare_data
from fastqat.train.run import train
from fastqat.train.score import score_run
from fastqat.train.study_grid import StudyRun
from tests.train.conftest import tiny_config

CPU = torch.device("cpu")
LABELS = torch.arange(5).repeat_interleave(torch.tensor([40, 7, 100, 1, 60]))


def silent(line: str) -> None:
    pass


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_the_share_of_each_class_is_exact(kind, share):
    wrong = with_wrong_labels(LABELS, share, kind, 5, seed=3, parts=[torch.arange(len(LABELS))])
    changed = wrong != LABELS
    assert LABELS[changed].bincount(minlength=5).tolist() == [round(share * n) for n in LABELS.bincount().tolist()]
    assert wrong.min() >= 0 and wrong.max() < 5
    if kind == "asymmetric":
        assert torch.equal(wrong[changed], (LABELS[changed] + 1) % 5)


def test_symmetric_noise_goes_to_all_other_classes_alike():
    labels = torch.zeros(6000, dtype=torch.int64)
    wrong = with_wrong_labels(labels, 0.5, "symmetric", 4, seed=0, parts=[torch.arange(6000)])
    counts = wrong.bincount(minlength=4)
    assert counts[0] == 3000 and (counts[1:] - 1000).abs().max() < 100  # 26 is one standard deviation


def test_the_seed_decides_and_parts_are_apart():
    parts = [torch.arange(0, 208, 2), torch.arange(1, 100, 2)]
    first, again, other = (with_wrong_labels(LABELS, 0.3, "symmetric", 5, seed, parts) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    changed = first != LABELS
    assert not changed[101::2].any()  # in no part
    for part in parts:
        for label in range(5):
            members = part[LABELS[part] == label]
            assert int(changed[members].sum()) == round(0.3 * len(members))


def test_one_class_has_no_wrong_label():
    with pytest.raises(InputError, match="at least 2 classes; got 1"):
        with_wrong_labels(torch.zeros(4, dtype=torch.int64), 0.5, "symmetric", 1, 0, [torch.arange(4)])


class Files(Dataset):
    """Samples that are read one by one, as torchvision's folders have them."""

    def __init__(self, root: Path, n: int):
        self.samples = [(str(root / f"{i}.bin"), i % 2) for i in range(n)]
        for path, _ in self.samples:
            Path(path).write_bytes(b"x")
        self.targets = [label for _, label in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return torch.full((1, 2, 2), float(i)), self.samples[i][1]


def test_folders_are_relabelled_without_touching_the_originals(tmp_path):
    files, labels = Files(tmp_path, 6), torch.tensor([1, 1, 0, 0, 1, 1])
    other = relabelled(files, labels)
    part = subset(other, torch.tensor([4, 2]))
    assert [int(y) for _, y in (other[i] for i in range(6))] == labels.tolist() == labels_of(other).tolist()
    assert labels_of(part).tolist() == [1, 0] and float(part[0][0].mean()) == 4 and files[0][1] == 0
    assert len({fingerprint(files), fingerprint(other), fingerprint(relabelled(files, 1 - labels))}) == 3


def test_tensors_are_shared():
    data = TensorData(torch.randn(4, 2, 3, 3), torch.tensor([0, 1, 0, 1]))
    other = relabelled(data, torch.tensor([1, 1, 1, 1]))
    assert other.x.data_ptr() == data.x.data_ptr() and data.y.tolist() == [0, 1, 0, 1] and other.y.tolist() == [1] * 4
    assert fingerprint(other) != fingerprint(data)


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric"])
def test_pool_and_validation_are_noisy_and_the_test_set_is_not(kind):
    config = TrainConfig(limit=400, val_fraction=0.25, label_noise=0.2, label_noise_type=kind)
    noisy, clean = prepare_data(config, CPU), prepare_data(replace(config, label_noise=0.0), CPU)
    assert torch.equal(noisy.pool.x, clean.pool.x) and torch.equal(noisy.test.y, clean.test.y)
    for mine, given in ((noisy.pool.y, clean.pool.y), (noisy.val.y, clean.val.y)):
        assert given[mine != given].bincount(minlength=10).tolist() == [round(0.2 * int(n)) for n in given.bincount(minlength=10)]
    assert torch.equal(noisy.wrong, noisy.pool.y != clean.pool.y) and torch.equal(noisy.labels, noisy.pool.y)
    assert noisy.source.dataset is noisy.pool and clean.wrong is None
    assert clean.clean is None and torch.equal(noisy.clean.labels, clean.labels)
    part = part_of(noisy, torch.tensor([3, 1]), "a")
    assert torch.equal(part.wrong, noisy.wrong[[3, 1]]) and torch.equal(part.labels, noisy.labels[[3, 1]])


def test_the_whole_training_set_has_the_same_wrong_labels():
    config = TrainConfig(limit=400, label_noise=0.3)
    noisy, clean = prepare_data(config, CPU), prepare_data(replace(config, label_noise=0.0), CPU)
    rows = {str(x.tolist()): int(y) for x, y in zip(noisy.train.x, noisy.train.y, strict=True)}
    assert [rows[str(x.tolist())] for x in noisy.pool.x] == noisy.pool.y.tolist()
    assert float((noisy.train.y != clean.train.y).double().mean()) == pytest.approx(0.3, abs=0.01)


def test_float_models_are_cached_by_the_labels_that_they_learned():
    base = TrainConfig(limit=200)
    changes = [{}, {"label_noise": 0.1}, {"label_noise": 0.2}, {"label_noise": 0.2, "label_noise_type": "asymmetric"}]
    keys = [float_key(config, prepare_data(config, CPU)) for config in (replace(base, **change) for change in changes)]
    assert len(set(keys)) == 4
    oracle = replace(base, label_noise=0.2, oracle_teacher=True, loss="kd")
    data = prepare_data(oracle, CPU)
    assert float_key(oracle, data) == keys[2] and float_key(teacher_config(oracle), data.clean) == keys[0]
    trained = [StudyRun("a", config).float_models for config in (replace(base, label_noise=0.2), base, oracle)]
    assert trained[0] | trained[1] == trained[2] and trained[0].isdisjoint(trained[1])
    shared = [prepare_data(replace(base, label_noise=0.2, seed=seed, float_seed=1), CPU).labels for seed in (0, 1)]
    assert torch.equal(*shared) and not torch.equal(shared[0], prepare_data(replace(base, label_noise=0.2, float_seed=2), CPU).labels)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> dict[str, TrainConfig]:
    """Runs with and without an oracle, trained once for all tests of this file."""
    threads = torch.get_num_threads()
    base = replace(tiny_config(tmp_path_factory.mktemp("noise")), label_noise=0.2, float_epochs=4)
    configs = {name: replace(base, name=name, **change) for name, change in {
        "noisy": {}, "oracle": {"oracle_teacher": True, "report": True}, "clean": {"label_noise": 0.0, "epochs": 0},
        "whole": {"select": "none", "epochs": 2},
    }.items()}  # fmt: skip
    for config in configs.values():
        train(config, say=silent)
    torch.set_num_threads(threads)
    return configs


def rows_of(config: TrainConfig) -> list[dict[str, str]]:
    with open(config.run_dir / "metrics.csv", newline="") as handle:
        return list(csv.DictReader(handle))


def summary_of(config: TrainConfig) -> dict:
    return json.loads((config.run_dir / "summary.json").read_text())


def test_each_selection_tells_its_wrong_labels(finished):
    config = finished["noisy"]
    rows = [row for row in rows_of(config) if row["stage"] == "qat"]
    for path in sorted((config.run_dir / "selections").glob("*.npz")):
        with np.load(path) as arrays:
            share = arrays["wrong"][arrays["indices"]].mean()
            assert arrays["wrong"].mean() == pytest.approx(0.2, abs=0.05)
        assert float(rows[int(path.stem[-4:])]["noisy_selected"]) == pytest.approx(share, rel=1e-5)
    summary = summary_of(config)
    shares = [float(row["noisy_selected"]) for row in rows]
    assert summary["noisy_selected"] == pytest.approx(shares[-1], rel=1e-5)
    assert summary["noisy_selected_mean"] == pytest.approx(sum(shares) / len(shares), rel=1e-5)
    assert (summary["label_noise"], summary["label_noise_type"], summary["oracle_teacher"]) == (0.2, "symmetric", False)
    assert summary["teacher"] is None and summary["oracle_models"] == []
    assert all(row["noisy_selected"] == "" for row in rows_of(config) if row["stage"] == "float")


def test_all_data_have_the_share_of_the_pool(finished):
    data = prepare_data(finished["whole"], CPU)
    assert summary_of(finished["whole"])["noisy_selected"] == pytest.approx(float(data.wrong.double().mean()), rel=1e-6)


def weights(config: TrainConfig, name: str) -> dict[str, torch.Tensor]:
    return torch.load(config.run_dir / "checkpoints" / f"{name}.pt", weights_only=True)["model"]


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_an_oracle_differs_in_its_teacher_alone(finished):
    noisy, oracle, clean = (finished[name] for name in ("noisy", "oracle", "clean"))
    assert same(weights(oracle, "float"), weights(noisy, "float")) and not same(weights(oracle, "float"), weights(clean, "float"))
    assert same(weights(oracle, "teacher"), weights(clean, "float"))
    summary = summary_of(oracle)
    assert summary["float_accuracy"] == summary_of(noisy)["float_accuracy"]
    assert summary["teacher_accuracy"] == summary_of(clean)["float_accuracy"]
    assert (summary["teacher"], summary["oracle_models"]) == ("resnet8", ["teacher"])
    stages = [row["stage"] for row in rows_of(oracle)]
    assert stages == ["float"] * 4 + ["teacher"] * 4 + ["qat"] * 4


def test_what_an_oracle_leaves_behind(finished):
    config = finished["oracle"]
    page = (config.run_dir / "report.html").read_text()
    assert "the right labels were there for the teacher" in page and "20 % of each class were made wrong" in page
    given = prepare_data(config, CPU).labels
    assert torch.equal(ScoreTable.load(config.run_dir / "dynamics.npz").labels, given)
    with np.load(config.run_dir / "label_issues.npz") as issues:
        assert np.array_equal(issues["given"], given[issues["index"]])
    scored = score_run(config.run_dir, ("ds",), progress=False)  # compares with the oracle
    assert scored["ds"].shape == given.shape


def test_given_weights_under_noise_are_marked(finished, tmp_path):
    torch.save(weights(finished["clean"], "float"), tmp_path / "w.pt")
    base = replace(finished["noisy"], epochs=0, float_checkpoint=tmp_path / "w.pt", oracle_teacher=True, loss="kd")
    summary = train(replace(base, name="given"), say=silent)
    assert summary["oracle_models"] == ["float", "teacher"] and summary["teacher"] is None
    assert summary["float_accuracy"] == summary_of(finished["clean"])["float_accuracy"]
    other = replace(base, float_checkpoint=None, teacher_checkpoint=tmp_path / "w.pt")
    assert other.oracle_models == ("teacher",) and teacher_config(other).float_checkpoint == tmp_path / "w.pt"


def test_resumed_and_scored_with_the_same_labels(finished):
    config = finished["noisy"]
    assert train(replace(config, resume=True), say=silent) == summary_of(config)
    assert torch.equal(score_run(config.run_dir, ("evs",), progress=False).labels, prepare_data(config, CPU).labels)
    given = score_run(config.run_dir, ("evs",), data="digits", progress=False).labels
    assert torch.equal(given, prepare_data(replace(config, label_noise=0.0), CPU).labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_noise": 1.0}, r"label_noise must lie in \[0, 1\); got 1.0"),
        ({"label_noise": -0.1}, "label_noise must lie in"),
        ({"oracle_teacher": True}, "set label_noise above 0"),
        ({"oracle_teacher": True, "label_noise": 0.1, "select": "rs2"}, "looks at a teacher; leave oracle_teacher out"),
        ({"label_noise": 0.1, "float_checkpoint": Path("x.pt")}, "weights of float_checkpoint may come .* oracle_teacher=True"),
        ({"label_noise": 0.1, "teacher_checkpoint": Path("x.pt"), "loss": "kd"}, "weights of teacher_checkpoint may come"),
    ],
)
def test_settings_that_make_no_sense(change, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**change)


def test_noise_is_in_the_name():
    names = {
        TrainConfig(label_noise=0.1).run_name,
        TrainConfig(label_noise=0.1, label_noise_type="asymmetric").run_name,
        TrainConfig().run_name,
    }
    names |= {TrainConfig(label_noise=0.1, oracle_teacher=True, loss="kd").run_name, TrainConfig(label_noise=0.2).run_name}
    assert len(names) == 5
