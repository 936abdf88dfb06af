"""`DynamicsRecorder` against a plain loop over the showings, resumed, and what it refuses."""

from __future__ import annotations

import io
import itertools
import math

import pytest
import torch

from fastqat._errors import CheckpointError, InputError
from fastqat.selection import DynamicsRecorder, list_scores
from fastqat.selection.recording.showings import measure, unpacked

from .recordings import CLASSES, N, batches, record, same


def oracle(given):
    """Every score of every sample in fp64, showing by showing."""
    shown = {i: [] for i in range(N)}
    for index, logits, targets in given:
        for i, row, y in zip(index.tolist(), logits.double().tolist(), targets.tolist(), strict=True):
            shown[i].append((row, y))
    most = max(len(turns) for turns in shown.values())
    return {name: torch.tensor([score(shown[i], most) for i in range(N)], dtype=torch.float64) for name, score in ORACLES.items()}


def softmax(row):
    exps = [math.exp(z - max(row)) for z in row]
    return [e / sum(exps) for e in exps]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def label_probabilities(turns):
    return [softmax(row)[y] for row, y in turns]


def margin(row, y):
    return row[y] - max(z for j, z in enumerate(row) if j != y)


def error_norm(row, y):
    return math.sqrt(sum((p - (j == y)) ** 2 for j, p in enumerate(softmax(row))))


def losses(turns, most):
    """Turns from right to wrong; `most` for a sample that was never right."""
    right = [row.index(max(row)) == y for row, y in turns]
    return sum(a and not b for a, b in itertools.pairwise(right)) if any(right) else most


def deviation(values):
    return math.sqrt(mean((v - mean(values)) ** 2 for v in values))


ORACLES = {
    "aum": lambda turns, most: mean(margin(row, y) for row, y in turns),
    "el2n": lambda turns, most: mean(error_norm(row, y) for row, y in turns),
    "evs": lambda turns, most: mean(error_norm(row, y) for row, y in turns),
    "loss": lambda turns, most: mean(-math.log(p) for p in label_probabilities(turns)),
    "label_confidence": lambda turns, most: mean(label_probabilities(turns)),
    "variability": lambda turns, most: deviation(label_probabilities(turns)),
    "forgetting": losses,
}


@pytest.mark.parametrize("seed", range(3))
def test_every_score_equals_a_loop_over_the_showings(seed):
    want = oracle(batches(seed))
    got = record(DynamicsRecorder(N), batches(seed)).table(list(want))
    for name, values in want.items():
        torch.testing.assert_close(got[name].double(), values, rtol=2e-6, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}")
    assert (want["forgetting"] > 0).any()


def test_every_score_of_the_stage_has_an_oracle():
    of_training = {name for name, score in list_scores().items() if score.stage == "dynamics"}
    assert of_training == set(ORACLES) - {"evs", "el2n", "loss"} | {"misses"}
    table = record(DynamicsRecorder(N), batches()).table()
    assert set(table) == of_training - {"misses"} | {"el2n", "loss", "suggested"}
    labels = torch.zeros(N, dtype=torch.int64)
    for index, _, targets in batches():
        labels[index] = targets
    assert torch.equal(table.labels, labels)


def test_misses_add_up_over_bit_widths_and_leave_the_training_alone():
    recorder = record(DynamicsRecorder(N), batches(0))
    alone = recorder.table()
    for bits in (2, 4):
        record(recorder, batches(bits), bits=bits)
    table = recorder.table()
    want = sum(oracle(batches(bits))["forgetting"] for bits in (2, 4))
    torch.testing.assert_close(table["misses"].double(), want)
    assert all(torch.equal(table[name], alone[name]) for name in alone)


def test_copies_alone_give_misses_alone():
    table = record(DynamicsRecorder(N), batches(), bits=2).table()
    assert list(table) == ["misses"] and table.labels is not None
    with pytest.raises(InputError, match="score 'aum' needs update\\(\\) with the model in training"):
        record(DynamicsRecorder(N), batches(), bits=2).table("aum")
    with pytest.raises(InputError, match="score 'misses' needs update\\(\\) with bits="):
        record(DynamicsRecorder(N), batches()).table(["misses"])
    with pytest.raises(InputError, match="score 'entropy' is not one of a training; a recording gives aum, el2n"):
        record(DynamicsRecorder(N), batches()).table(["entropy"])


def test_never_right_is_the_most_and_a_late_learner_is_not():
    """Three showings: always wrong, wrong then right, forgotten once, never forgotten."""
    right = torch.tensor([[False, False, True, True], [False, False, False, True], [False, True, True, True]])
    recorder = DynamicsRecorder(4)
    for now in right:
        logits = torch.where(now[:, None], torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0]))
        recorder.update(torch.arange(4), logits, torch.zeros(4, dtype=torch.int64))
    assert recorder.table("forgetting")["forgetting"].tolist() == [3, 0, 1, 0]


def test_a_sample_twice_in_a_batch_takes_its_turns_in_order():
    logits = torch.tensor([[3.0, 0.0], [0.0, 3.0], [3.0, 0.0], [0.0, 3.0]])
    recorder = DynamicsRecorder(1)
    recorder.update(torch.zeros(4, dtype=torch.int64), logits, torch.zeros(4, dtype=torch.int64))
    recorder.update(torch.zeros(1, dtype=torch.int64), logits[:1], torch.zeros(1, dtype=torch.int64))
    recorder.update(torch.zeros(1, dtype=torch.int64), logits[1:2], torch.zeros(1, dtype=torch.int64))
    assert recorder.table()["forgetting"].item() == 3 and recorder.seen.tolist() == [6]


def test_suggested_is_the_other_class_that_won_most_showings():
    """Votes 3, 1, 3, 2, 3: the label, 0, leads now and then and is never suggested."""
    recorder = DynamicsRecorder(1)
    for vote, lead in ((3, 1.0), (1, -1.0), (3, 1.0), (2, 1.0), (3, -1.0)):
        logits = torch.zeros(1, 4)
        logits[0, 0], logits[0, vote] = 5.0, 5.0 + lead
        recorder.update(torch.tensor([0]), logits, torch.tensor([0]))
    assert recorder.table()["suggested"].item() == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_of_any_type_with_gradients(dtype):
    logits = torch.randn(5, 3, dtype=dtype, requires_grad=True)
    recorder = DynamicsRecorder(5)
    recorder.update(torch.arange(5, dtype=torch.int32), logits, torch.arange(5, dtype=torch.int32) % 3)
    torch.testing.assert_close(recorder.table()["aum"], measure(torch.arange(5), logits, torch.arange(5) % 3, 5).margin.float())


def test_a_resumed_recording_has_the_same_bits():
    given = list(batches())
    whole = record(record(DynamicsRecorder(N), given), given, bits=4)
    first = record(record(DynamicsRecorder(N), given[:11]), given[:11], bits=4)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = DynamicsRecorder(N)
    second.load_state_dict(torch.load(file, weights_only=True))
    record(record(second, given[11:]), given[11:], bits=4)
    same(second.table(), whole.table())
    assert sorted(first.table(["aum"])) == ["aum", "suggested"]  # loading did not tie the two together
    with pytest.raises(CheckpointError, match="of 23 samples, this recorder is for 7"):
        DynamicsRecorder(7).load_state_dict(first.state_dict())


def test_batches_in_another_order_of_samples_give_the_same_table():
    """The order inside a batch of different samples does not matter, to the last bit."""
    generator = torch.Generator().manual_seed(5)
    turned = []
    for index, logits, targets in batches(repeats=0):
        order = torch.randperm(len(index), generator=generator)
        turned.append((index[order], logits[order], targets[order]))
    same(record(DynamicsRecorder(N), batches(repeats=0)).table(), record(DynamicsRecorder(N), turned).table())


def test_nothing_waits_for_a_device():
    """On meta tensors every read of a value raises."""
    recorder = DynamicsRecorder(N, device="meta")
    index, logits, targets = (t.to("meta") for t in next(batches()))
    recorder.update(index, logits, targets)
    recorder.update(index, logits, targets, bits=4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda i, z, y: (i, z[:, :1], y), "at least two classes; got [7, 1]"),
        (lambda i, z, y: (i[:3], z, y), "indices must be integers, one per row of the logits, [7]; got torch.int64 [3]"),
        (lambda i, z, y: (i.tolist(), z, y), "indices must be integers, one per row of the logits, [7]; got list"),
        (lambda i, z, y: (i, z, torch.softmax(z, 1)), "targets must be integers, one per row of the logits, [7]; got torch.float32"),
        (lambda i, z, y: (i + N, z, y), "is outside [0, 23), the samples of this recorder"),
        (lambda i, z, y: (i - N, z, y), "is outside [0, 23), the samples of this recorder"),
        (lambda i, z, y: (i, z, y + CLASSES), "class indices from 0 to 3"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_and_not_counted(given, message):
    recorder = DynamicsRecorder(N)
    with pytest.raises(InputError) as error:
        recorder.update(*given(*next(batches())))
    assert message in str(error.value) and not recorder.seen.any()


def test_other_refusals():
    recorder = DynamicsRecorder(N)
    index, logits, targets = next(batches())
    with pytest.raises(InputError, match="bits must be"):
        recorder.update(index, logits, targets, bits=33)
    with pytest.raises(InputError, match="num_samples must be a whole number"):
        DynamicsRecorder(0)
    with pytest.raises(InputError, match="23 of 23 samples were never shown in training"):
        recorder.table()
    recorder.update(index, logits, targets)
    unseen = sorted(set(range(N)) - set(index.tolist()))
    with pytest.raises(InputError, match=f"{len(unseen)} of 23 samples were never shown in training, the first is index {unseen[0]}"):
        recorder.table()
    with pytest.raises(InputError, match="logits of 1 samples were NaN, or their targets no classes, the first at index 4"):
        record(DynamicsRecorder(N), [*batches(), (torch.tensor([4]), torch.full((1, 4), torch.nan), torch.tensor([0]))]).table()


def test_an_index_that_only_the_device_knows_shows_in_the_table():
    recorder = record(DynamicsRecorder(N), batches())
    before = recorder.table()
    index, logits, targets = next(batches())
    recorder._add(measure(index, logits, targets, N)._replace(sample=index + 100), 0)
    with pytest.raises(InputError, match="7 indices were outside"):
        recorder.table()
    recorder._stray.zero_()
    same(recorder.table(), before)


def test_packing_a_batch_loses_nothing():
    index, logits, targets = next(batches())
    shown = measure(index, logits, targets, N)
    rows = torch.cat([shown.packed(2, 4), shown.packed(1, 0), shown.packed(1, 4)])
    again = list(unpacked(rows[torch.arange(21).roll(3).sort().values]))
    assert [bits for bits, _ in again] == [0, 4, 4]
    for _, part in again:
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(part, shown, strict=True))


def test_columns_come_in_the_order_that_was_asked_for():
    names = ["forgetting", "aum", "el2n"]
    assert list(record(DynamicsRecorder(N), batches()).table(names)) == [*names, "suggested"]
