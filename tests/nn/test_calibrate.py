"""calibrate(): ranges, signs, and everything put back afterwards."""

import math

import pytest
import torch
from torch import nn

from fastqat import _errors
from fastqat.nn import QConfig, calibrate, quantize
from fastqat.quantizers import QuantSpec


def mlp(config: object = "w4a4", **options: object) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Dropout(), nn.ReLU(), nn.Linear(8, 2))
    return quantize(net, config, **{"skip": (), **options})


BATCHES = [torch.randn(16, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


def test_uncalibrated_forward_names_the_layer() -> None:
    for mode in (True, False):
        with pytest.raises(_errors.CalibrationError, match=r"layer '0'.*fastqat\.calibrate"):
            mlp().train(mode)(BATCHES[0])


def test_signs_follow_the_data() -> None:
    model = calibrate(mlp(), BATCHES)
    assert [model[i].activation_quantizer.signed for i in (0, 2, 5)] == [True, False, False]
    assert [model[i].activation_quantizer.qrange() for i in (0, 2)] == [(-8, 7), (0, 15)]


def test_first_scale_comes_from_float_activations_and_quantized_weights() -> None:
    model = calibrate(mlp(), BATCHES)
    x = torch.cat(BATCHES)
    hidden = nn.functional.linear(x, model[0].weight_quantizer(model[0].weight), model[0].bias).relu()
    for layer, values, qmax in ((model[0], x, 7), (model[2], hidden, 15)):
        torch.testing.assert_close(layer.activation_quantizer.scale.detach(), (2 * values.abs().mean() / math.sqrt(qmax)).reshape(1))


def test_every_form_of_batch() -> None:
    expected = calibrate(mlp(), BATCHES).state_dict()
    forms = {
        "tuples": {"batches": [(x, torch.zeros(16)) for x in BATCHES]},
        "lists": {"batches": [[x, None] for x in BATCHES]},
        "generator": {"batches": (x for x in BATCHES)},
        "dicts": {"batches": [{"x": x} for x in BATCHES], "forward": lambda model, batch: model(batch["x"])},
    }
    for form, arguments in forms.items():
        state = calibrate(mlp(), **arguments).state_dict()
        assert all(torch.equal(state[key], value) for key, value in expected.items()), form


def test_reads_no_more_than_max_batches() -> None:
    batches = iter(BATCHES)
    calibrate(mlp(), batches, max_batches=2)
    assert len(list(batches)) == 1


def test_second_call_does_nothing_without_force() -> None:
    model = calibrate(mlp(), BATCHES)
    scale = model[0].activation_quantizer.scale
    before = scale.detach().clone()
    calibrate(model, [100 * x for x in BATCHES])
    assert torch.equal(scale, before)
    calibrate(model, [-x for x in []])  # nothing to do: not even a batch is asked for
    calibrate(model, [100 * x for x in BATCHES], force=True)
    torch.testing.assert_close(model[0].activation_quantizer.scale, 100 * before)
    assert model[0].activation_quantizer.scale is scale, "an optimizer that holds the parameter keeps it"


def test_modes_and_gradients_are_as_before() -> None:
    model = mlp()
    model[3].eval()
    modes = [module.training for module in model.modules()]
    seen = []
    model[2].register_forward_hook(lambda module, *_: seen.append((module.training, torch.is_grad_enabled())))
    calibrate(model, BATCHES)
    assert seen == [(False, False)] * 3
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())


def test_everything_is_put_back_when_a_batch_fails() -> None:
    model = mlp()
    modes = [module.training for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="shape"):
        calibrate(model, [BATCHES[0], torch.randn(3, 5)])
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(_errors.CalibrationError):
        model(BATCHES[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_activations_name_the_layer_and_change_nothing(bad: float) -> None:
    model = mlp()
    x = BATCHES[0].clone()
    x[0, 0] = bad
    with pytest.raises(ValueError, match="layer '0': its activation holds NaN"):
        calibrate(model, [x])
    assert not any(model[i].activation_quantizer.calibrated for i in (0, 2, 5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batches": []}, "batches is empty"),
        ({"batches": BATCHES[0]}, "batches is one tensor"),
        ({"batches": [{"x": BATCHES[0]}]}, "a calibration batch is dict.*forward="),
        ({"batches": BATCHES, "max_batches": 0}, "max_batches is 0"),
    ],
)
def test_bad_batches(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrate(mlp(), **arguments)


def test_layers_that_do_not_run_stay_uncalibrated_with_a_warning() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x)

    model = quantize(Unused(), "w4a4", skip=())
    with pytest.warns(UserWarning, match="1 layers did not run during calibration and stay uncalibrated: b"):
        calibrate(model, BATCHES)
    assert model.a.activation_quantizer.calibrated and not model.b.activation_quantizer.calibrated


def test_dead_input_gives_a_finite_model() -> None:
    model = calibrate(mlp(), [torch.zeros(4, 4)])
    model(torch.zeros(4, 4)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_weights_only_needs_no_calibration() -> None:
    model = mlp("w2a32")
    assert calibrate(model, []) is model


def test_compiled_model_is_calibrated_eagerly() -> None:
    model = mlp()
    calibrate(torch.compile(model, backend="eager", fullgraph=True), BATCHES)
    assert all(model[i].activation_quantizer.calibrated for i in (0, 2, 5))


def test_minmax_covers_what_was_seen() -> None:
    spec = QuantSpec(8, "minmax", symmetric=False)
    model = calibrate(mlp(QConfig(None, spec)), BATCHES)
    x = torch.cat(BATCHES)
    assert model[0].activation_quantizer.low.item() == x.min() and model[0].activation_quantizer.high.item() == x.max()
