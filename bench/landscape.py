"""Loss along random directions around the weights of finished runs, float and quantized, as rows.

    python -m bench.landscape runs/why/acs-seed0 runs/why/rs2-seed0

A direction has the shape of the weights, normal, each filter scaled to the norm of the filter of the weights (biases, norms and step
sizes stay): the slices of nets whose weights differ in size can be compared. The draws are the same for all runs of an architecture. Loss
and accuracy are those of samples of the pool, with their labels, as the net would be deployed (eval mode). Rows of a run that is there
already are replaced.

Source: Li, Xu, Taylor, Studer and Goldstein 2018, "Visualizing the loss landscape of neural nets", section 4 (filter normalisation).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastqat._errors import CheckpointError
from fastqat.data import subset
from fastqat.quantizers.base import Quantizer
from fastqat.selection.datasets import batches_of
from fastqat.train.checkpoint import load_state, load_weights
from fastqat.train.config import TrainConfig
from fastqat.train.engine import evaluate
from fastqat.train.float_stage import given_weights, new_model
from fastqat.train.pool import RunData, prepare_data
from fastqat.train.report.folder import read_run
from fastqat.train.stage import forward_batch
from fastqat.train.student import make_student

from .rows import RESULTS
from .run_facts import facts_of, write_rows_of

OUT = RESULTS / "landscape.csv"
REACH = 1.0  # in norms of the filters


def filters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a direction moves, by name: weights of two dimensions or more; what belongs to a quantizer stays, also where it
    has a step size per group of a filter."""
    steps = {parameter for module in model.modules() if isinstance(module, Quantizer) for parameter in module.parameters()}
    return {name: value for name, value in model.named_parameters() if value.ndim > 1 and value not in steps}


def direction_of(weights: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """A direction in the space of `weights`: name → tensor of the same shape.

    Each filter, a slice along the first dimension, has the norm of that filter of the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, weight in weights.items():
        random = torch.randn(weight.shape, generator=generator).to(weight)
        norms = weight.flatten(1).norm(dim=1) / random.flatten(1).norm(dim=1)
        found[name] = random * norms.view(-1, *[1] * (weight.ndim - 1))
    return found


def slice_of(
    model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], places: Sequence[float], seed: int
) -> Iterator[tuple[float, float, float]]:
    """(place, loss, accuracy) of `model` with its filters moved by each place times the direction of `seed`; the weights come back."""
    filters = filters_of(model)
    weights = {name: value.detach().clone() for name, value in filters.items()}
    direction = direction_of(weights, seed)
    try:
        for place in places:
            with torch.no_grad():
                for name, value in filters.items():
                    value.copy_(weights[name] + place * direction[name])
            result = evaluate(model, iter(batches), amp=False, channels_last=False)
            yield place, result.loss, result.accuracy
    finally:
        with torch.no_grad():
            for name, value in filters.items():
                value.copy_(weights[name])


def models_of(path: Path, config: TrainConfig, data: RunData) -> dict[str, nn.Module]:
    """The float model that a run started from, and its quantized one after the last epoch.

    Raises:
        CheckpointError: the run has no checkpoint of one of them.
    """
    model, own = new_model(config, data, torch.device("cpu")), path / "checkpoints" / "float.pt"
    source = config.float_checkpoint or own
    load_weights(model, given_weights(source), source)
    student, epochs = make_student(config, model), sorted((path / "checkpoints").glob("epoch_[0-9]*.pt"))
    if not epochs:
        raise CheckpointError(f"{path} has no checkpoint of an epoch; finish the run, or keep its folder checkpoints")
    load_weights(student, load_state(epochs[-1])["model"], epochs[-1])
    return {"float": model, "quantized": student}


def rows_of(path: Path, samples: int, points: int, directions: int) -> list[dict[str, Any]]:
    """The rows of one run directory."""
    run, config = read_run(path), TrainConfig.from_yaml(path / "config.yaml")
    data = prepare_data(config, torch.device("cpu"))
    order = torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(0))[:samples].sort().values
    batches = [(x, y) for x, y in batches_of(subset(data.pool, order), forward_batch(torch.device("cpu"))) if y is not None]
    facts, places = facts_of(run), torch.linspace(-REACH, REACH, points).tolist()
    rows = []
    for kind, model in models_of(path, config, data).items():
        for seed in range(directions):
            for place, loss, accuracy in slice_of(model, batches, places, seed):
                numbers = {"place": f"{place:.4g}", "cross_entropy": f"{loss:.6g}", "accuracy": f"{accuracy:.6g}"}
                rows.append({**facts, "net": kind, "direction": seed, **numbers, "samples": len(order)})
    return rows


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--samples", type=int, default=1000, help="of the pool, a random part that is the same for all runs")
    parser.add_argument("--points", type=int, default=21, help="places on a slice, from −1 to 1")
    parser.add_argument("--directions", type=int, default=2)
    args = parser.parse_args(argv)
    return write_rows_of(args.runs, args.out, partial(rows_of, samples=args.samples, points=args.points, directions=args.directions))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
