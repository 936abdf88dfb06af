"""The weight of the layer correction: balanced by running means, fixed, and what it does with batches that are not finite."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastqat._errors import CheckpointError, InputError
from fastqat.methods import CascadedCorrection

from .quarc_nets import Net

pytestmark = pytest.mark.usefixtures("one_thread")


def parts(clc: CascadedCorrection, x: Tensor) -> tuple[Tensor, Tensor]:
    """L_KD and λ L_CLC of a batch."""
    logits, taught, correction = clc(x)
    kd = F.cross_entropy(logits, taught.softmax(1))
    return kd, clc.weighted(correction, kd)


def batch(step: int) -> Tensor:
    return torch.randn(6, 2, 5, 3, generator=torch.Generator().manual_seed(step))


def train(clc: CascadedCorrection, steps: int, optimizer: torch.optim.Optimizer) -> list[float]:
    ratios = []
    for step in range(steps):
        optimizer.zero_grad()
        sum(parts(clc, batch(step))).backward()
        optimizer.step()
        ratios.append(float(clc.last_ratio))
    return ratios


@pytest.mark.parametrize("options", [{}, {"ratio": 0.3}, {"ratio": 2.0, "distribution": "mse", "reduction": "rows"}])
def test_the_balanced_weight_keeps_the_ratio(options):
    student, ratio = Net(0), options.get("ratio", 1.0)
    clc = CascadedCorrection(student, Net(1), **options)
    ratios = train(clc, 40, torch.optim.SGD(student.parameters(), 0.0005))
    assert ratios[0] == pytest.approx(ratio)
    assert sum(ratios) / 40 == pytest.approx(ratio, rel=0.3) and all(0.2 * ratio < each < 3 * ratio for each in ratios)


def test_the_balance_goes_on_from_its_state(tmp_path):
    def start():
        student = Net(0)
        return student, torch.optim.SGD(student.parameters(), 0.05), CascadedCorrection(student, Net(1))

    student, optimizer, clc = start()
    assert clc.state_dict()["means"] is None
    train(clc, 3, optimizer)
    torch.save({"student": student.state_dict(), "clc": clc.state_dict()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again, other_optimizer, resumed = start()
    again.load_state_dict(state["student"])
    resumed.load_state_dict(state["clc"])
    assert train(clc, 2, optimizer) == train(resumed, 2, other_optimizer)
    with pytest.raises(CheckpointError, match=r"saved with ratio 1.0 \(here 2.0\); resume with the same settings"):
        CascadedCorrection(Net(0), Net(1), ratio=2.0).load_state_dict(state["clc"])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_a_batch_that_is_not_finite_leaves_the_balance_alone(bad, place):
    """As under a GradScaler, which leaves such a step out; also where it is the first."""
    nets = [(Net(0).eval(), Net(1)) for _ in range(2)]
    plain, disturbed = (CascadedCorrection(*pair) for pair in nets)
    wanted = [parts(plain, batch(step)) for step in range(3)]
    found = []
    for step in range(3):
        if step == place:
            assert not parts(disturbed, batch(9) * bad)[1].isfinite()
        found.append(parts(disturbed, batch(step)))
    assert found == wanted and disturbed.state_dict()["means"].tolist() == plain.state_dict()["means"].tolist()


def test_a_correction_alone_that_is_not_finite():
    clc = CascadedCorrection(Net(0), Net(1))
    for correction in (math.inf, 2.0):
        added = clc.weighted(torch.tensor(correction), torch.tensor(3.0))
    assert added == pytest.approx(3.0)


def test_an_empty_batch_is_no_number_as_other_means_of_nothing():
    for distribution in ("channel", "spatial", "flat", "mse"):
        student: nn.Module = Net(0).eval()
        clc = CascadedCorrection(student, Net(1), distribution=distribution)
        kd, added = parts(clc, batch(0)[:0])
        assert kd.isnan() and added.isnan()
        train(clc, 1, torch.optim.SGD(student.parameters(), 0.1))
        assert clc.last_ratio == pytest.approx(1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"weight": 7.0}, "weight=7.0 is for balance='fixed'; pass that with it, or ratio= in its place"),
        ({"balance": "fixed", "ratio": 0.5}, "ratio=0.5 is for balance='auto'; pass that with it, or weight= in its place"),
    ],
)
def test_numbers_of_the_other_balance_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        CascadedCorrection(Net(0), Net(1), **options)
