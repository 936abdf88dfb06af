"""Selection in Lightning: a callback that owns the policy, and the sampler for the training loader. ``pip install fastqat[lightning]``."""

from __future__ import annotations

from typing import Any

from fastqat._errors import InputError
from fastqat.integrations.sampler import EpochSampler
from fastqat.selection.policies import SelectionPolicy

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError(f"fastqat.integrations.lightning needs Lightning, which does not import ({error}); pip install lightning") from error


class SelectionCallback(Callback):
    """Train on what `policy` selects, re-selected when it is due, saved in and resumed from Lightning's checkpoints.

    Give the callback to the ``Trainer`` and its `sampler` to the training loader. Lightning shards samplers among processes itself
    (``use_distributed_sampler=True``, the default), so make the policy with ``num_replicas=1``; the scoring passes share the data among
    the processes on their own. The policy's student is the network inside the module, quantized and calibrated. ``selection/size`` and
    ``selection/seconds`` are logged once per epoch.

    Weights and scores of the training forward are the business of ``training_step``: read the data through
    `fastqat.selection.IndexedDataset`, multiply the losses by ``policy.sampler.loss_weights(index)`` where the method has weights, and
    call ``policy.observe(index, logits, y)`` where its ``score_source`` is ``"train"``.

    Args:
        policy: `fastqat.methods.ACS`, or any policy of `fastqat.selection`.

    Raises:
        InputError: the policy shards by itself.

    Example::

        selection = SelectionCallback(fq.methods.ACS(train_set, module.net, teacher, epochs=60))
        loader = DataLoader(train_set, 128, sampler=selection.sampler)
        Trainer(max_epochs=60, callbacks=[selection]).fit(module, loader)
    """

    def __init__(self, policy: SelectionPolicy):
        if policy.sampler.num_replicas != 1:
            raise InputError(f"Lightning shards the sampler itself; make the policy with num_replicas=1; got {policy.sampler.num_replicas}")
        self.policy = policy
        self.sampler = EpochSampler(policy, self._epoch)
        self._trainer: Trainer | None = None

    def _epoch(self) -> int:
        return 0 if self._trainer is None else self._trainer.current_epoch

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remember the trainer, which knows the epoch."""
        self._trainer = trainer

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log how much was selected, and the seconds spent on selection so far; finish the policy after the last epoch."""
        self.policy.end_epoch()
        if trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs:
            self.policy.finish()
        facts = {"selection/size": float(len(self.policy.sampler)), "selection/seconds": self.policy.selection_seconds}
        pl_module.log_dict(facts, on_step=False, on_epoch=True, rank_zero_only=True)

    def state_dict(self) -> dict[str, Any]:
        """The policy's state, in the checkpoint."""
        return self.policy.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was taken."""
        self.policy.load_state_dict(state_dict)
