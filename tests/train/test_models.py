"""Models by name: sizes of the published nets, input shapes, errors."""

import pytest
import torch

from fastqat._errors import InputError
from fastqat.train.models import MODELS, count_parameters, first_mismatch, make_model


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)], ids=str)
def test_every_small_net_takes_every_picture(name, shape):
    model = make_model(name, 7, shape)
    with torch.no_grad():
        assert model(torch.randn(2, *shape)).shape == (2, 7)


# He et al. 2016, table 6: 0.27 M and 0.46 M parameters (convolutions, norms and the last layer; shortcuts have none).
@pytest.mark.parametrize(("name", "parameters"), [("resnet20", 269_722), ("resnet32", 464_154)])
def test_residual_nets_have_the_published_size(name, parameters):
    assert count_parameters(make_model(name, 10, (3, 32, 32))) == parameters


def test_mobilenet_half_has_half_the_channels_and_seventeen_blocks():
    model = make_model("mobilenet_v2_half", 100, (3, 32, 32))
    blocks = [m for m in model.modules() if type(m).__name__ == "InvertedResidual"]
    assert len(blocks) == 17
    assert model.features[0].out_channels == 16 and model.classifier.in_features == 1280
    assert sum(block.shortcut for block in blocks) == 10
    assert model.features(torch.zeros(1, 3, 32, 32)).shape[-2:] == (4, 4)


def test_unknown_model_and_shape():
    with pytest.raises(InputError, match="resnet8, resnet20"):
        make_model("resnet9000", 10, (3, 32, 32))
    with pytest.raises(InputError, match="takes pictures"):
        make_model("resnet8", 10, (6, 100))
    with pytest.raises(InputError, match="takes pictures"):
        make_model("resnet8", 10, (1, 4, 4))


def test_torchvision_models_by_name():
    pytest.importorskip("torchvision")
    model = make_model("resnet18", 5, (1, 32, 32))
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 5)
    with pytest.raises(InputError, match="unknown model 'resnet9000'"):
        make_model("resnet9000", 10, (3, 32, 32))


def test_torchvision_model_without_torchvision(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    with pytest.raises(InputError, match="torchvision does not import"):
        make_model("resnet18", 10, (3, 32, 32))


def test_first_mismatch_names_the_difference():
    model, deeper = make_model("resnet8", 10, (3, 32, 32)), make_model("resnet20", 10, (3, 32, 32))
    assert first_mismatch(model, model.state_dict()) is None
    assert "layer1.1.conv1.weight, which the model has not" in str(first_mismatch(model, deeper.state_dict()))
    assert "it has no layer1.1" in str(first_mismatch(deeper, model.state_dict()))
    assert "fc.weight has shape (11, 64), the model (10, 64)" in str(
        first_mismatch(model, make_model("resnet8", 11, (3, 32, 32)).state_dict())
    )
