"""SelectionMixin: Hugging Face's Trainer trains on the selection, with its weights, and resumes to the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

import fastqat as fq
from fastqat import CheckpointError, InputError
from fastqat.selection import RS2, RandomSubset, Selection

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from fastqat.integrations.transformers import SelectionMixin  # noqa: E402 (needs transformers)


class Tokens(Dataset):
    """Sixty random sentences of eight words in three classes."""

    def __init__(self, size: int = 60):
        self.words = torch.randint(5, 50, (size, 8), generator=torch.Generator().manual_seed(0))
        self.labels = torch.arange(size) % 3

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"input_ids": self.words[index], "labels": self.labels[index]}


class NotingTrainer(SelectionMixin, transformers.Trainer):
    """Notes the samples of every batch."""

    def compute_loss(self, model, inputs, **kwargs):
        if model.training:
            self.met = [*getattr(self, "met", []), inputs["sample_index"].tolist()]
        return super().compute_loss(model, inputs, **kwargs)


class Noting(RandomSubset):
    """Notes what it was shown; weighs every sample with `weight`, None: not at all."""

    weight: float | None = None
    shown, observing = 0, True

    def _select(self, epoch):
        selection = super()._select(epoch)
        return selection if self.weight is None else Selection(selection.indices, torch.full((len(selection),), self.weight))

    def observe(self, indices, logits, targets, teacher_logits=None):
        assert logits.shape == (len(indices), 3) and not logits.requires_grad and targets.shape == indices.shape
        self.shown += len(indices)


def train(folder: Path, epochs: int, *, resume: bool = False, weight: float | None = None, accumulate: int = 1, **options):
    torch.manual_seed(0)
    data = Tokens()
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(**sizes, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    policy = Noting(data, fraction=0.2, interval=2, labels=data.labels)
    policy.weight = weight
    args = transformers.TrainingArguments(
        str(folder), num_train_epochs=epochs, per_device_train_batch_size=4, gradient_accumulation_steps=accumulate, save_strategy="epoch",
        report_to=[], disable_tqdm=True, use_cpu=True, logging_strategy="no", seed=1, lr_scheduler_type="constant", **options,
    )  # fmt: skip
    model = fq.quantize(transformers.BertForSequenceClassification(config), "w4a32")
    trainer = NotingTrainer(model=model, args=args, train_dataset=data, policy=policy)
    loss = trainer.train(resume_from_checkpoint=resume or None).training_loss
    return trainer, policy, loss


def assert_same_weights(a, b):
    for name, value in a.model.state_dict().items():
        assert torch.equal(value, b.model.state_dict()[name]), name


def test_every_epoch_trains_on_the_selection(tmp_path):
    trainer, policy, _ = train(tmp_path, 4)
    epochs = [sorted(i for batch in trainer.met[start : start + 3] for i in batch) for start in range(0, 12, 3)]
    assert len(trainer.met) == 12 and epochs[0] == epochs[1] != epochs[2] == epochs[3] == sorted(policy.selection.indices.tolist())
    assert policy.shown == 4 * 12


def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path):
    whole, _, _ = train(tmp_path / "whole", 4)
    train(tmp_path / "cut", 3)
    resumed, _, _ = train(tmp_path / "cut", 4, resume=True)
    assert resumed.met == whole.met[9:]
    assert_same_weights(whole, resumed)


def test_weights_multiply_the_losses(tmp_path):
    still = {"max_grad_norm": 0.0, "optim": "sgd"}
    plain, _, loss = train(tmp_path / "plain", 2, **still)
    ones, _, same = train(tmp_path / "ones", 2, weight=1.0, **still)
    assert same == pytest.approx(loss, rel=1e-6)
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(ones.model.state_dict()[name], value, rtol=1e-5, atol=1e-7)


def test_weighted_losses_are_averaged_over_accumulated_batches(tmp_path):
    # Batches of 4, 4 | 4. The trainer's own loss of this model is not averaged (a model that takes keywords is trusted to do so).
    _, _, whole = train(tmp_path / "whole", 1, weight=0.5, learning_rate=0.0)
    _, _, accumulated = train(tmp_path / "accumulated", 1, weight=0.5, accumulate=2, learning_rate=0.0)
    _, _, plain = train(tmp_path / "plain", 1, learning_rate=0.0)
    assert whole == pytest.approx(plain / 2, rel=1e-6)
    assert accumulated == pytest.approx(whole, rel=0.05)


def test_what_does_not_fit_is_refused(tmp_path):
    args = transformers.TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    with pytest.raises(InputError, match="60 samples that the policy selects from; got 59"):
        NotingTrainer(
            model=torch.nn.Linear(1, 1), args=args, train_dataset=Tokens(59), policy=RS2(Tokens(), fraction=0.5, labels=Tokens().labels)
        )
    with pytest.raises(InputError, match="num_replicas=1; got 2"):
        policy = RS2(Tokens(), fraction=0.5, labels=Tokens().labels, num_replicas=2)
        NotingTrainer(model=torch.nn.Linear(1, 1), args=args, train_dataset=Tokens(), policy=policy)
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(CheckpointError, match="no selection.pt"):
        train(tmp_path, 1, resume=True)
