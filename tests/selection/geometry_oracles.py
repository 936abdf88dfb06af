"""The definitions of the geometric methods as plain loops in fp64, and data that is hard for them."""

import math

import torch

TINY = torch.finfo(torch.float32).tiny


def distances_to(x, others, metric):
    """Distance of every row of `x` to the row `others`, or to the same row of it, from differences."""
    a, b = x.double(), others.double()
    if metric == "symmetric_kl":
        a, b = a.clamp_min(TINY), b.clamp_min(TINY)
        return ((a - b) * (a.log() - b.log())).sum(1) / 2
    if metric == "cosine":
        a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
        return (a - b).square().sum(1) / 2
    return (a - b).square().sum(1).sqrt()


def k_center(x, budget, metric, first=None):
    """Picks and radii. argmax and argmin give the first of equals."""
    if first is None:
        first = int(distances_to(x, x.double().mean(0)[None], metric).argmin())
    picks, radii = [first], [math.inf]
    nearest = distances_to(x, x[first : first + 1], metric)
    while len(picks) < budget:
        left = nearest.clone()
        left[picks] = -1
        best = int(left.argmax())
        picks.append(best)
        radii.append(float(nearest[best]))
        nearest = torch.minimum(nearest, distances_to(x, x[best : best + 1], metric))
    nearest[picks] = torch.tensor(radii, dtype=torch.float64)
    return picks, nearest


def herding(x, budget):
    x = x.double()
    mean, total, picks = x.mean(0), torch.zeros(x.shape[1], dtype=torch.float64), []
    for turn in range(budget):
        distance = ((turn + 1) * mean - total - x).norm(dim=1)
        distance[picks] = math.inf
        picks.append(int(distance.argmin()))
        total = total + x[picks[-1]]
    return picks


def nearest(x, k, metric):
    """Distances and indices of the k nearest others."""
    distances = torch.stack([distances_to(x, x[i : i + 1], metric) for i in range(len(x))])
    distances.fill_diagonal_(math.inf)
    order = distances.sort(dim=1, stable=True)
    return order.values[:, :k], order.indices[:, :k]


def d2(utility, x, budget, k, gamma_f, gamma_r, iterations, metric="euclidean"):
    distances, neighbours = (values.tolist() for values in nearest(x, min(k, len(x) - 1), metric))
    u = [float(v) - min(0.0, float(utility.min())) for v in utility]
    for _ in range(iterations):
        raised = list(u)
        for i in range(len(u)):
            for d, j in zip(distances[i], neighbours[i], strict=True):
                raised[i] += math.exp(-gamma_f * d) * u[j]
        u = raised
    picks = []
    for _ in range(budget):
        best = max((i for i in range(len(u)) if i not in picks), key=lambda i: (u[i], -i))
        picks.append(best)
        message = max(u[best], 0.0)
        for d, j in zip(distances[best], neighbours[best], strict=True):
            u[j] -= math.exp(-gamma_r * d) * message
    return picks


def data(kind, size, width, seed=0):
    """Features ``[size, width]`` fp32 of a named kind."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(size, width, generator=generator)
    return {
        "normal": lambda: normal,
        "lattice": lambda: torch.randint(-2, 3, (size, width), generator=generator).float(),
        "twice": lambda: normal[torch.arange(size) % max(1, size // 2)],
        "far away": lambda: normal + 300,
        "constant": lambda: torch.full((size, width), 0.3),
        "one apart": lambda: torch.cat((torch.full((size - 1, width), 0.3), torch.ones(1, width))),
        "tiny": lambda: normal * 1e-30,
        "huge": lambda: normal * 1e25,
        "near duplicates": lambda: normal[:1] + 1e-6 * normal,
    }[kind]()


KINDS = ["normal", "lattice", "twice", "far away", "constant", "one apart", "tiny", "huge", "near duplicates"]
