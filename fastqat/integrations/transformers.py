"""Selection in Hugging Face's ``Trainer``: a mixin. ``pip install fastqat[transformers]``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

from fastqat._errors import CheckpointError, InputError
from fastqat._files import atomic_path
from fastqat.integrations.sampler import EpochSampler
from fastqat.selection.policies import SelectionPolicy
from fastqat.selection.sampler import SAMPLE_INDEX, IndexedDataset

try:
    from transformers import TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint
except ImportError as error:
    raise ImportError(f"fastqat.integrations.transformers needs transformers, which does not import ({error})") from error

STATE = "selection.pt"


class _IndexedMappings(IndexedDataset):
    """As `IndexedDataset`, of mappings only: `SelectionMixin` takes the index out of the batches again."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        if not isinstance(sample, dict):
            raise InputError("samples must be mappings, such as {'input_ids': ..., 'labels': ...}; got a pair (x, y)")
        return sample


class SelectionMixin:
    """Put before ``transformers.Trainer`` in a class's bases: it then trains on what `policy` selects.

    Every epoch goes over the selection only, which is made anew when it is due; its state is saved in every checkpoint and comes back with
    ``resume_from_checkpoint``. Where the selection has weights, the loss is the mean of weight · cross-entropy of ``logits`` to ``labels``
    (classification; label smoothing and a ``compute_loss_func`` of your own are refused then), else it is the trainer's own. A policy whose
    ``score_source`` is ``"train"`` is told the logits of every training batch.

    The policy is made for one process (``num_replicas=1``; Accelerate shards), over the same samples as ``train_dataset``, with
    ``forward=`` `dict_forward`, since the model takes keywords.

    Args:
        policy: `fastqat.methods.ACS`, or any policy of `fastqat.selection`.
        args, kwargs: of ``Trainer``; ``train_dataset`` is map-style and yields mappings.

    Raises:
        InputError: the policy shards by itself, or is over another number of samples than ``train_dataset``.
        CheckpointError: a checkpoint without the state of a selection, or with that of other settings.

    Example::

        class SelectiveTrainer(SelectionMixin, transformers.Trainer): ...

        policy = fq.methods.ACS(train_set, model, teacher, epochs=3, forward=dict_forward)
        SelectiveTrainer(model=model, args=args, train_dataset=train_set, policy=policy).train()
    """

    def __init__(self, *args: Any, policy: SelectionPolicy, **kwargs: Any):
        super().__init__(*args, **kwargs)
        trainer: Any = self
        if policy.sampler.num_replicas != 1:
            raise InputError(
                f"Accelerate shards the sampler itself; make the policy with num_replicas=1; got {policy.sampler.num_replicas}"
            )
        if trainer.train_dataset is None or len(trainer.train_dataset) != policy.size:
            got = "none" if trainer.train_dataset is None else len(trainer.train_dataset)
            raise InputError(f"train_dataset must hold the {policy.size} samples that the policy selects from; got {got}")
        self.policy = policy
        self._epochs = EpochSampler(policy, lambda: int((trainer.state.epoch or 0.0) + 1e-6))
        trainer.train_dataset = _IndexedMappings(trainer.train_dataset)
        trainer.add_callback(_SaveSelection(policy))

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        """The selection, in the order of the epoch."""
        return self._epochs

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the index, which the model does not take, in the batches."""
        super()._set_signature_columns_if_needed()  # type: ignore[misc]  # Trainer has it
        columns = self._signature_columns  # type: ignore[has-type]  # of Trainer
        self._signature_columns = columns if SAMPLE_INDEX in columns else [*columns, SAMPLE_INDEX]

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """As ``Trainer.train``; the selection goes on where the checkpoint was taken."""
        trainer: Any = self
        folder = get_last_checkpoint(trainer.args.output_dir) if resume_from_checkpoint is True else resume_from_checkpoint
        if folder:
            self.policy.load_state_dict(_read_state(Path(folder)))
        self._epochs.begun = None
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)  # type: ignore[misc]  # Trainer has it

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any) -> Any:
        """The trainer's loss, or with weights the mean of weight · cross-entropy; tells the policy what was seen."""
        trainer: Any = self
        index = inputs.pop(SAMPLE_INDEX, None)
        if index is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)  # type: ignore[misc]  # Trainer has it
        labels = inputs.get("labels")
        if self.policy.sampler.weights is None:
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)  # type: ignore[misc]  # Trainer has it
        else:
            if trainer.label_smoother is not None or trainer.compute_loss_func is not None:
                raise InputError("a weighted selection computes its own cross-entropy; leave out label smoothing and compute_loss_func")
            if labels is None:
                raise InputError(
                    "a weighted selection computes its own cross-entropy and needs 'labels' in the batch; the data set gives none"
                )
            outputs = model(**inputs)
            losses = F.cross_entropy(logits_in(outputs).float(), labels, reduction="none")
            loss = (losses * self.policy.sampler.loss_weights(index)).mean()
            if trainer.model_accepts_loss_kwargs and kwargs.get("num_items_in_batch") is not None:
                loss = loss / trainer.current_gradient_accumulation_steps  # then the trainer takes it for divided already
        if labels is not None and self.policy.observing:
            self.policy.observe(index, logits_in(outputs).detach(), labels)
        return (loss, outputs) if return_outputs else loss


def logits_in(outputs: Any) -> Tensor:
    """The logits ``[B, C]`` of a model's outputs."""
    return outputs["logits"] if isinstance(outputs, Mapping) else outputs.logits if hasattr(outputs, "logits") else outputs[0]


def dict_forward(model: nn.Module, batch: Mapping[str, Any]) -> Any:
    """``forward=`` of policies and `fastqat.selection.score_dataset` for models that take keywords: ``model(**batch)``."""
    return model(**batch)


class _SaveSelection(TrainerCallback):
    """Writes the policy's state into every checkpoint, and finishes the policy with the training."""

    def __init__(self, policy: SelectionPolicy):
        self.policy = policy

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.policy.end_epoch()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            with atomic_path(Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE) as part:
                torch.save(self.policy.state_dict(), part)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.policy.finish()


def _read_state(folder: Path) -> dict[str, Any]:
    path = folder / STATE
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {STATE}: it was not saved by a trainer with SelectionMixin; resume one that was")
    return torch.load(path, map_location="cpu", weights_only=True)
