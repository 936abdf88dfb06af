"""The definitions of the submodular and gradient-matching methods as plain loops in fp64."""

import numpy as np
import torch
from torch.nn.functional import one_hot

EQUAL = 1e-10  # values closer than this share of their size are one value: the lowest index counts
TINY = torch.finfo(torch.float32).tiny


def first_of_best(values, taken, size):
    values = values.masked_fill(taken, -torch.inf)
    return int((values >= values.max() - EQUAL * size).nonzero()[0])


def costs(x, kind):
    """[N, N]; a similarity is a constant minus its cost, and negative similarities count as 0."""
    x = x.double()
    if kind == "cosine":
        unit = torch.nn.functional.normalize(x, eps=TINY)
        some = (x != 0).any(1)
        return torch.where(some[:, None] & some, (unit[:, None] - unit).square().sum(2) / 2, 1.0).clamp_max(1)
    squares = (x[:, None] - x).square().sum(2)
    if kind == "euclidean":
        return squares.sqrt()
    variance = float((x - x.mean(0)).square().sum(1).mean())
    return -(-squares / (2 * variance or 1.0)).expm1()


def facility_location(x, budget, kind):
    """Picks, who serves whom, and the objective at the end."""
    c = costs(x, kind)
    start = float(c.max()) if kind == "euclidean" else 1.0
    best, taken, picks = torch.full((len(x),), start).double(), torch.zeros(len(x), dtype=torch.bool), []
    while len(picks) < budget:
        gains = (best[:, None] - c).clamp_min(0).sum(0)
        picks.append(first_of_best(gains, taken, float(gains[~taken].max())))
        taken[picks[-1]] = True
        best = torch.minimum(best, c[:, picks[-1]])
    return picks, c[:, picks].argmin(1), float((start - best).sum())


def graph_cut(x, budget, redundancy, kind="cosine"):
    x = torch.nn.functional.normalize(x.double(), eps=TINY) if kind == "cosine" else x.double()
    s = (x[:, None] * x).sum(2)
    taken, picks = torch.zeros(len(x), dtype=torch.bool), []
    while len(picks) < budget:
        gains = s.sum(0) - 2 * redundancy * s[picks].sum(0) - redundancy * s.diagonal()
        picks.append(first_of_best(gains, taken, len(x) * float(s.abs().max())))
        taken[picks[-1]] = True
    return picks


def gradmatch(x, budget, ridge):
    """Picks and weights w of the mean, the least squares by scipy."""
    from scipy.optimize import nnls

    rows = x.double().numpy()
    target = rows.mean(0)
    residual, picks, weights, longest = target, [], np.zeros(0), np.linalg.norm(rows, axis=1).max()
    while len(picks) < budget:
        products = torch.from_numpy(rows @ residual)
        products[picks] = -torch.inf
        if float(products.max()) <= 1e-10 * longest * np.linalg.norm(target):
            break
        picks.append(int((products >= products.max() - EQUAL * longest * np.linalg.norm(residual)).nonzero()[0]))
        system = np.concatenate([rows[picks].T, ridge**0.5 * np.eye(len(picks))])
        weights = nnls(system, np.concatenate([target, np.zeros(len(picks))]), maxiter=10**6)[0]
        residual = target - rows[picks].T @ weights
    rest = [i for i in range(len(x)) if i not in picks][: budget - len(picks)]
    return picks + rest, np.concatenate([weights, np.zeros(len(rest))])


def glister(features, logits, inputs, labels, classes, budget, learning_rate, interval=1):
    """With autograd through the last layer's step; `inputs` [M, D] or None for a bias alone."""
    features, taken, picks = features.double(), torch.zeros(len(features), dtype=torch.bool), []
    width, step = features.shape[1], torch.zeros(features.shape[1]).double()
    while len(picks) < budget:
        if len(picks) % interval == 0:
            moved = (-step).requires_grad_()
            out = logits.double() + moved[:classes]
            if inputs is not None:
                out = out + inputs.double() @ moved[classes:].reshape(classes, -1).T
            direction = torch.autograd.grad(torch.nn.functional.cross_entropy(out, labels), moved)[0]
        products = features @ direction
        picks.append(first_of_best(products, taken, float(features.norm(dim=1).max() * direction.norm())))
        taken[picks[-1]] = True
        step = step + learning_rate * features[picks[-1]]
    assert step.shape == (width,)
    return picks


def last_layer_gradients(logits, inputs, labels):
    """[p − y ; (p − y) hᵀ], fp32."""
    error = logits.softmax(1) - one_hot(labels, logits.shape[1])
    return error if inputs is None else torch.cat([error, (error[:, :, None] * inputs[:, None]).flatten(1)], 1)
