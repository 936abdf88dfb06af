"""Label errors: every rule against a written-out loop, cross-validation, and planted noise found."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from fastqat._errors import InputError
from fastqat.data import TensorData
from fastqat.selection import (
    DynamicsRecorder,
    ScoreTable,
    find_label_issues,
    fold_indices,
    label_quality,
    out_of_sample,
    threshold_labels,
)


def probabilities(size=200, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(size, classes, generator=generator)).softmax(1), torch.randint(classes, (size,), generator=generator)


def confident_by_hand(p, labels):
    """Northcutt et al., section 3.1, one sample at a time: index → suggested class."""
    rows, labels = p.double().tolist(), labels.tolist()
    classes = range(len(rows[0]))
    members = {j: [row[j] for row, y in zip(rows, labels, strict=True) if y == j] for j in classes}
    threshold = {j: sum(values) / len(values) for j, values in members.items() if values}
    found = {}
    for i, (row, y) in enumerate(zip(rows, labels, strict=True)):
        confident = [j for j in classes if j in threshold and row[j] >= threshold[j]]
        best = max(confident, key=lambda j, row=row: row[j], default=y)
        if best != y and row[best] > row[y]:
            found[i] = best
    return found


@pytest.mark.parametrize("seed", range(4))
def test_confident_learning_equals_a_loop(seed):
    p, labels = probabilities(seed=seed)
    labels[labels == 3] = 1  # a class that nothing is labelled with
    issues = find_label_issues(ScoreTable({"loss": torch.zeros(200)}, labels, features=p), method="confident")
    want = confident_by_hand(p, labels)
    assert dict(zip(issues.indices.tolist(), issues.suggested.tolist(), strict=True)) == want and len(want) > 50
    assert torch.equal(issues.given, labels[issues.indices])
    torch.testing.assert_close(issues.quality, p[issues.indices, issues.given])
    assert (issues.quality.diff() >= 0).all()


def test_confident_learning_agrees_with_cleanlab_on_who_is_suspicious():
    filters = pytest.importorskip("cleanlab.filter")
    p, labels = probabilities(1000, 4)
    ours = find_label_issues(ScoreTable({"loss": torch.zeros(1000)}, labels), method="confident", probabilities=p)
    theirs = filters.find_label_issues(labels.numpy(), p.double().numpy(), filter_by="confident_learning", n_jobs=1)
    same = torch.zeros(1000, dtype=torch.bool).index_fill(0, ours.indices, True) == torch.from_numpy(theirs)
    assert same.float().mean() > 0.95  # cleanlab's guess is the likeliest class even where that one is not confident


def test_self_confidence_and_loss_compare_with_the_likeliest_other_class():
    p, labels = probabilities()
    own = p.gather(1, labels[:, None]).squeeze(1)
    table = ScoreTable({"loss": -own.log()}, labels, features=p)
    wrong = (p.argmax(1) != labels).nonzero().flatten()
    for method, quality in (("self_confidence", own), ("loss", own.log())):
        issues = find_label_issues(table, method=method)
        assert issues.indices.sort().values.tolist() == wrong.tolist()
        assert torch.equal(issues.suggested, p.argmax(1)[issues.indices])
        torch.testing.assert_close(issues.quality, quality[issues.indices])
        torch.testing.assert_close(label_quality(table, method=method), quality)


def test_of_a_recording_below_one_half():
    table = ScoreTable({"label_confidence": torch.tensor([0.4, 0.6]), "loss": torch.tensor([0.6, 0.8])}, torch.tensor([0, 1]))
    assert find_label_issues(table, method="self_confidence").indices.tolist() == [0]
    assert find_label_issues(table, method="loss").indices.tolist() == [1]
    assert find_label_issues(table, method="loss").suggested.tolist() == [-1]


def test_aum_thresholds():
    table = ScoreTable({"aum": torch.tensor([3.0, -1.0, 0.5, -2.0, 1.0]), "suggested": torch.arange(5)}, torch.ones(5, dtype=torch.int64))
    assert find_label_issues(table).indices.tolist() == [3, 1]
    assert find_label_issues(table).suggested.tolist() == [3, 1]
    assert find_label_issues(table, threshold=0.75).indices.tolist() == [3, 1, 2]
    assert len(find_label_issues(table, threshold=-9).indices) == 0
    of_samples = find_label_issues(table, threshold_samples=[3, 4])  # 99 % of the way from −2 to 1
    assert of_samples.indices.tolist() == [1, 2]


def test_probabilities_are_told_from_other_features():
    _, labels = probabilities()
    table = ScoreTable({"loss": torch.rand(200)}, labels, features=torch.randn(200, 5))
    with pytest.raises(InputError, match="method 'confident' needs out-of-sample probabilities"):
        find_label_issues(table, method="confident")
    with pytest.raises(InputError, match=r"probabilities must be \[200, classes ≥ 5\], each row ≥ 0 with sum 1; got \[200, 5\]"):
        find_label_issues(table, method="confident", probabilities=table.features)


def test_refusals():
    table = ScoreTable({"evs": torch.rand(4)}, torch.tensor([0, 1, 0, 1]))
    with pytest.raises(InputError, match="method must be one of aum, confident, self_confidence, loss; got 'magic'"):
        find_label_issues(table, method="magic")
    with pytest.raises(InputError, match="method 'aum' needs the column 'aum'; take the table from a DynamicsRecorder"):
        find_label_issues(table)
    with pytest.raises(InputError, match="the table has no labels"):
        find_label_issues(ScoreTable({"aum": torch.rand(4)}))
    with pytest.raises(InputError, match="threshold_samples set the threshold of method 'aum'"):
        find_label_issues(ScoreTable({"loss": torch.rand(4)}, [0, 1, 0, 1]), method="loss", threshold_samples=[0])
    with pytest.raises(InputError, match=r"threshold_samples must be indices in \[0, 4\)"):
        find_label_issues(ScoreTable({"aum": torch.rand(4)}, [0, 1, 0, 1]), threshold_samples=[4])
    with pytest.raises(InputError, match="1 samples have no quality"):
        find_label_issues(ScoreTable({"aum": torch.tensor([0.0, torch.nan])}, [0, 1]))


@pytest.mark.parametrize(("size", "folds"), [(100, 5), (101, 4), (7, 7), (10, 3)])
def test_folds_are_stratified_and_a_function_of_the_seed(size, folds):
    labels = torch.randint(3, (size,), generator=torch.Generator().manual_seed(size))
    parts = fold_indices(labels, folds)
    for members in (torch.ones(size, dtype=torch.bool), *(labels == c for c in labels.unique())):
        counts = parts[members].bincount(minlength=folds)
        assert counts.max() - counts.min() <= 1
    assert torch.equal(parts, fold_indices(labels.tolist(), folds))
    assert folds == size or not torch.equal(parts, fold_indices(labels, folds, seed=1))


def test_fold_refusals():
    with pytest.raises(InputError, match="folds must be a whole number ≥ 2; got 1"):
        fold_indices([0, 1], 1)
    with pytest.raises(InputError, match="folds must be at most the number of samples, 2; got 3"):
        fold_indices([0, 1], 3)


def test_threshold_labels_are_a_share_of_one_over_classes_plus_one():
    labels = torch.arange(60) % 3
    chosen, extended = threshold_labels(labels)
    assert len(chosen) == 15 and (extended[chosen] == 3).all() and (chosen.diff() > 0).all()
    rest = torch.ones(60, dtype=torch.bool).index_fill(0, chosen, False)
    assert torch.equal(extended[rest], labels[rest])
    assert torch.equal(chosen, threshold_labels(labels)[0]) and not torch.equal(chosen, threshold_labels(labels, seed=1)[0])
    with pytest.raises(InputError, match=r"labels must be in \[0, 2\), of more than 2 samples"):
        threshold_labels(labels, num_classes=2)


class Remembers(nn.Module):
    """Knows which inputs it was trained on: says class 0 for them and class 1 for all others."""

    def __init__(self, known):
        super().__init__()
        self.register_buffer("known", known)

    def forward(self, x):
        return nn.functional.one_hot((~torch.isin(x[:, 0], self.known)).long(), 3).float()


@pytest.mark.parametrize("kind", [TensorDataset, lambda x, y: TensorData(x, y, torch.zeros(1), torch.ones(1))])
def test_every_sample_is_scored_by_the_model_that_has_not_seen_it(kind):
    x, y = torch.arange(31.0)[:, None], torch.arange(31) % 3
    seen = []

    def train(indices, fold):
        seen.append((fold, indices))
        return Remembers(x[indices, 0])

    table = out_of_sample(train, kind(x, y), folds=4, batch_size=5, progress=False)
    assert (table.features.argmax(1) == 1).all() and torch.equal(table.labels, y)
    assert [fold for fold, _ in seen] == [0, 1, 2, 3]
    assert torch.equal(torch.cat([i for _, i in seen]).bincount(), torch.full((31,), 3))
    torch.testing.assert_close(table["loss"], -table.features.gather(1, y[:, None]).squeeze(1).log())
    with pytest.raises(InputError, match="keeps the probabilities as features"):
        out_of_sample(train, kind(x, y), features="embedding")


def blobs(noise=0.1):
    """Five well separated classes in the plane, a tenth of the labels wrong."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(500) % 5
    angle = 2 * torch.pi * y / 5
    x = torch.stack([angle.cos(), angle.sin()], dim=1) + 0.15 * torch.randn(500, 2, generator=generator)
    wrong = torch.zeros(500, dtype=torch.bool).index_fill(0, torch.randperm(500, generator=generator)[: round(noise * 500)], True)
    return x, y, torch.where(wrong, (y + torch.randint(1, 5, y.shape, generator=generator)) % 5, y), wrong


def fit(x, y, recorder=None, epochs=15, classes=5):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, classes))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(50):
            logits = model(x[index])
            if recorder is not None:
                recorder.update(index, logits, y[index])
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, y[index]).backward()
            optimizer.step()
    return model


def quality_of(issues, wrong, true):
    found = wrong[issues.indices]
    return found.float().mean(), found.sum() / wrong.sum(), (issues.suggested == true[issues.indices])[found].float().mean()


@pytest.fixture(scope="module")
def tables():
    """A recorded training, and out-of-sample predictions."""
    x, _, noisy, _ = blobs()
    recorder = DynamicsRecorder(len(x))
    fit(x, noisy, recorder)
    held = out_of_sample(lambda indices, fold: fit(x[indices], noisy[indices]), TensorDataset(x, noisy), folds=3, progress=False)
    return recorder.table(), held


@pytest.mark.parametrize(("method", "kind"), [("aum", 0), ("loss", 0), ("self_confidence", 0), ("confident", 1), ("loss", 1)])
def test_planted_noise_is_found(method, kind, tables):
    table, (_, true, _, wrong) = tables[kind], blobs()
    precision, recall, named = quality_of(find_label_issues(table, method=method), wrong, true)
    assert precision > 0.9 and recall > 0.85 and named > 0.9


def test_planted_noise_is_found_with_threshold_samples():
    x, true, noisy, wrong = blobs()
    chosen, extended = threshold_labels(noisy)
    recorder = DynamicsRecorder(len(x))
    fit(x, extended, recorder, classes=6)
    issues = find_label_issues(recorder.table(), threshold_samples=chosen)
    assert not torch.isin(issues.indices, chosen).any()
    judged = wrong.index_fill(0, chosen, False)
    precision, recall, named = quality_of(issues, judged, true)
    assert precision > 0.8 and recall > 0.9 and named > 0.9
