"""Selection policies: which samples each epoch trains on.

The protocol, the same for every policy (`fastqat.methods.ACS` included); a training loop needs no more than this::

    policy = RandomSubset(train_set, fraction=0.1, epochs=E)
    for epoch in range(E):
        changed = policy.begin_epoch(epoch)            # True when a new selection was made (ACS: that costs a scoring pass)
        for x, y in DataLoader(train_set, batch_size, sampler=policy.sampler): ...      # or train_set.batches(b, policy.sampler.order())
    policy.finish()                                    # after the last epoch; ACS: batch-norm statistics, if asked for

With loss weights, and with scores that are taken from the training itself, it needs to know which sample is which::

        for x, y, index in DataLoader(IndexedDataset(train_set), batch_size, sampler=policy.sampler):
            logits = model(x)
            losses = cross_entropy(logits, y, reduction="none")
            (losses * policy.sampler.loss_weights(index)).mean().backward()
            policy.observe(index, logits, y)           # teacher_logits= too, where policy.observes_teacher
        policy.end_epoch()                             # several processes: in each, before state_dict()

`policy.sampler`    `CoresetSampler` over the selection, shuffled per epoch from (seed, epoch)
`policy.selection`  `Selection`: ``indices`` int64, best first, and ``weights`` or None; None before the first `begin_epoch`
`policy.table`      `ScoreTable` of the last selection by scores (its features left out), or None where nothing was scored
`policy.beta(epoch)`        weight of EVS in the blend at `epoch` (ACS), else None
`policy.scoring_forwards`   samples sent through a model for selection so far (student, teacher, batch-norm statistics)
`policy.selection_seconds`  seconds spent on selection so far
`policy.state_dict()` / `load_state_dict(state)`   tensors, numbers and strings only (``torch.load(weights_only=True)`` reads it);
    saved after epoch e and loaded into an equal policy, ``begin_epoch(e + 1)`` goes on as if nothing had happened
"""

from fastqat.selection.policies.base import SelectionPolicy
from fastqat.selection.policies.drawn import RS2, RandomSubset, WholeSet
from fastqat.selection.policies.passes import Scorer
from fastqat.selection.policies.scored import ScoredSubset

__all__ = ["RS2", "RandomSubset", "ScoredSubset", "Scorer", "SelectionPolicy", "WholeSet"]
