"""GradMatch and GLISTER against plain loops in fp64."""

import pytest
import torch

from fastqat._errors import InputError
from fastqat.selection import select
from fastqat.selection.geometry.matching_pursuit import matching_pursuit
from fastqat.selection.geometry.one_step import ValidationGradient

from . import geometry_oracles, submodular_oracles

SIZES = [(1, 2, 1), (7, 2, 7), (40, 3, 13), (60, 8, 30), (60, 16, 10)]


@pytest.mark.parametrize("kind", ["normal", "lattice", "twice", "constant", "one apart", "shifted"])
@pytest.mark.parametrize("ridge", [0.0, 0.01, 0.5, 5.0])
def test_gradmatch_is_the_plain_loop(kind, ridge):
    pytest.importorskip("scipy", reason="scipy is not installed")
    for seed in range(3):
        for size, width, budget in SIZES:
            x = (
                geometry_oracles.data("normal", size, width, seed) + 2
                if kind == "shifted"
                else geometry_oracles.data(kind, size, width, seed)
            )
            picks, weights = submodular_oracles.gradmatch(x, budget, ridge)
            got, ours = matching_pursuit(x, x.double().mean(0), budget, ridge=ridge)
            assert got.tolist() == picks, (seed, size)
            assert torch.allclose(ours, torch.from_numpy(weights), rtol=1e-6, atol=1e-8 * max(weights.max(), 1e-9))


@pytest.mark.parametrize("patience", [1, 10**9])
def test_gradmatch_looks_again_or_through_a_screen_and_renews_its_inverse(patience, monkeypatch):
    pytest.importorskip("scipy", reason="scipy is not installed")
    monkeypatch.setattr("fastqat.selection.geometry.directions._FOLLOWED", 7)
    monkeypatch.setattr("fastqat.selection.geometry.directions._PATIENCE", patience)
    monkeypatch.setattr("fastqat.selection.geometry.matching_pursuit._RENEWED", 5)
    x = geometry_oracles.data("normal", 120, 6) + 0.5
    picks, weights = submodular_oracles.gradmatch(x, 60, 0.1)
    got, ours = matching_pursuit(x, x.double().mean(0), 60, ridge=0.1)
    assert got.tolist() == picks and torch.allclose(ours, torch.from_numpy(weights), rtol=1e-6, atol=1e-9)


def test_gradmatch_weights_make_the_subset_s_mean_gradient_the_full_one():
    x = geometry_oracles.data("normal", 200, 6) + 0.3
    chosen = select(200, 0.2, method="gradmatch", features=x, ridge=1e-6)
    assert torch.allclose((chosen.weights[:, None] * x[chosen.indices]).mean(0), x.mean(0), rtol=1e-3, atol=1e-4)
    assert bool((chosen.weights >= 0).all())


def test_gradmatch_of_classes_keeps_the_mean():
    x, labels = geometry_oracles.data("normal", 200, 6) + 0.3, torch.arange(200).clamp_max(150) // 51
    chosen = select(200, 0.3, method="gradmatch", features=x, labels=labels, ridge=1e-6)
    assert torch.allclose((chosen.weights[:, None] * x[chosen.indices]).mean(0), x.mean(0), rtol=1e-3, atol=1e-4)


def test_without_a_ridge_the_rest_follows_with_weight_zero():
    x = geometry_oracles.data("normal", 50, 3)
    picks, weights = matching_pursuit(x, x.double().mean(0), 20, ridge=0.0)
    positive = int((weights > 0).sum())
    assert positive <= 3 and len(picks.unique()) == 20
    rest = picks[weights == 0][3 - positive :]
    assert rest.tolist() == sorted(rest.tolist())


def test_zero_gradients_are_picked_in_order_with_weight_zero():
    chosen = select(6, 0.5, method="gradmatch", features=torch.zeros(6, 2))
    assert chosen.indices.tolist() == [0, 1, 2] and chosen.weights.tolist() == [0.0, 0.0, 0.0]


def last_layer(samples, classes, width, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, classes, generator=generator)
    inputs = torch.randn(samples, width, generator=generator).abs()
    return logits, inputs, torch.randint(classes, (samples,), generator=generator)


@pytest.mark.parametrize("learning_rate", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("interval", [1, 4])
@pytest.mark.parametrize("bias_only", [False, True])
def test_glister_is_the_plain_loop_with_autograd(learning_rate, interval, bias_only):
    train, held_out = last_layer(80, 4, 5, 0), last_layer(30, 4, 5, 1)
    inputs = None if bias_only else train[1]
    features = submodular_oracles.last_layer_gradients(train[0], inputs, train[2])
    val_inputs = None if bias_only else held_out[1]
    val_features = submodular_oracles.last_layer_gradients(held_out[0], val_inputs, held_out[2])
    want = submodular_oracles.glister(features, held_out[0], val_inputs, held_out[2], 4, 24, learning_rate, interval)
    given = {"features": features, "val_features": val_features, "classes": None if bias_only else 4}
    chosen = select(80, 0.3, method="glister", **given, learning_rate=learning_rate, interval=interval)
    assert chosen.indices.tolist() == want and chosen.weights is None


def test_glister_updates_the_validation_gradient():
    train, held_out = last_layer(80, 4, 5, 0), last_layer(30, 4, 5, 1)
    features, val_features = (submodular_oracles.last_layer_gradients(*part) for part in (train, held_out))
    given = {"method": "glister", "features": features, "val_features": val_features, "classes": 4}
    fixed, updated = (select(80, 0.3, **given, learning_rate=rate).indices for rate in (0.0, 0.3))
    assert fixed.tolist() == (features @ val_features.mean(0)).sort(descending=True).indices[:24].tolist()
    assert fixed.tolist() != updated.tolist()


def test_a_step_on_the_validation_gradient_lowers_the_loss_and_saturated_samples_do_no_harm():
    logits, inputs, labels = last_layer(30, 4, 5, 1)
    logits[0, labels[0]] += 1000
    gradient = ValidationGradient(submodular_oracles.last_layer_gradients(logits, inputs, labels), 4)
    start = gradient.at(torch.zeros(24, dtype=torch.float64))
    assert float(gradient.at(0.5 * start).norm()) < float(start.norm())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: select(9, 0.5, method="gradmatch", features=x, ridge=-1), "ridge must be a number ≥ 0; got -1"),
        (lambda x: select(9, 0.5, method="gradmatch", features=x, ridge="0"), "ridge must be a number ≥ 0; got '0'"),
        (lambda x: select(9, 0.5, method="glister", features=x), "pass val_features="),
        (lambda x: select(9, 0.5, method="glister", features=x, val_features=x[:, :2]), "as wide as features, 4; got 2"),
        (lambda x: select(9, 0.5, method="glister", features=x, val_features=x, classes=3), "a multiple of 3 features; got 4"),
        (lambda x: select(9, 0.5, method="glister", features=x, val_features=x, classes=2), "must be p − y of 2 classes"),
        (lambda x: select(9, 0.5, method="glister", features=x, val_features=x, learning_rate=-1), "learning_rate must be a number ≥ 0"),
        (lambda x: select(9, 0.5, method="glister", features=x, val_features=x, interval=0), "interval must be a whole number ≥ 1"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(call, message):
    with pytest.raises(InputError, match=message) as error:
        call(torch.rand(9, 4) + 0.5)
    assert "\n" not in str(error.value)
