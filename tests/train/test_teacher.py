"""A teacher of another architecture, and the quantizer setting."""

import csv
import json
from dataclasses import replace

import pytest
import torch

import fastqat as fq
from fastqat._errors import CheckpointError, InputError
from fastqat.train.checkpoint import save_state
from fastqat.train.config import TrainConfig
from fastqat.train.float_stage import teacher_config
from fastqat.train.models import make_model
from fastqat.train.run import Run, train
from fastqat.train.score import score_run
from fastqat.train.student import make_student, qconfig_of
from tests.train.conftest import tiny_config


def silent(line: str) -> None:
    pass


def small(runs, **changes) -> TrainConfig:
    return replace(tiny_config(runs), **{"epochs": 2, "loss": "kd", "teacher": "resnet20", **changes})


def weights(config: TrainConfig, name: str) -> dict[str, torch.Tensor]:
    return torch.load(config.run_dir / "checkpoints" / f"{name}.pt", weights_only=True)["model"]


@pytest.fixture(scope="module")
def taught(tmp_path_factory) -> TrainConfig:
    threads = torch.get_num_threads()
    config = small(tmp_path_factory.mktemp("taught"))
    train(config, say=silent)
    torch.set_num_threads(threads)
    return config


def test_it_is_trained_as_a_float_model_and_cached_as_one(taught):
    with open(taught.run_dir / "metrics.csv", newline="") as handle:
        stages = [row["stage"] for row in csv.DictReader(handle)]
    assert stages == ["float"] * 2 + ["teacher"] * 2 + ["qat"] * 2
    alone, told = replace(taught, model="resnet20", teacher=None, name="alone", epochs=0), []
    summary = train(alone, say=told.append)
    assert any("of an earlier run" in line for line in told)
    assert summary["float_accuracy"] == json.loads((taught.run_dir / "summary.json").read_text())["teacher_accuracy"]
    assert all(torch.equal(value, weights(alone, "float")[name]) for name, value in weights(taught, "teacher").items())


def test_distillation_and_scores_go_to_the_teacher(taught):
    run = Run(replace(taught, name="looked at"), silent)
    assert run.teacher is not run.float_net and len(run.teacher.layer1) == 3
    stage_objective = run._stage(run._student(), fq.train.folder.RunFolder(taught.run_dir), []).objective
    assert stage_objective.teacher is run.teacher
    run.teacher.load_state_dict(weights(taught, "teacher"))
    x, _ = next(run.data.pool.batches(128))
    student = make_student(taught, run.float_net)
    student.load_state_dict(torch.load(taught.run_dir / "checkpoints" / "best.pt", weights_only=True)["model"])
    with torch.no_grad():
        expected = (student.eval()(x).softmax(1) - run.teacher.eval()(x).softmax(1)).norm(dim=1)
    assert torch.allclose(score_run(taught.run_dir, ("ds",), progress=False)["ds"][:128], expected, atol=1e-5)


def test_a_killed_run_goes_on_in_the_teachers_training(tmp_path, one_thread):
    whole = small(tmp_path / "whole")
    expected, config = train(whole, say=silent), small(tmp_path / "cut")

    def stop(line: str) -> None:
        if line.startswith("teacher epoch   1"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, say=stop)
    told: list[str] = []
    summary = train(replace(config, resume=True), say=told.append)
    assert any("teacher: resumed after epoch 0" in line for line in told)
    for key in ("float_accuracy", "teacher_accuracy", "test_accuracy", "gradient_steps"):
        assert summary[key] == expected[key]
    assert all(torch.equal(value, weights(whole, "teacher")[name]) for name, value in weights(config, "teacher").items())


def test_given_weights_are_taken(tmp_path, one_thread):
    torch.manual_seed(5)
    given = make_model("resnet20", 10, (1, 8, 8))
    save_state(tmp_path / "t.pt", given.state_dict())
    config = small(tmp_path / "runs", teacher_checkpoint=tmp_path / "t.pt", epochs=1)
    summary = train(config, say=silent)
    assert summary["teacher"] == "resnet20" and not (config.run_dir / "checkpoints/teacher.pt").exists()
    assert score_run(config.run_dir, ("ds",), progress=False)["ds"].shape == (130,)
    other = replace(config, model="resnet20", teacher=None)
    assert teacher_config(other).float_checkpoint == tmp_path / "t.pt"  # weights of the same architecture, another teacher all the same
    assert teacher_config(replace(config, teacher="resnet8", teacher_checkpoint=None)) is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"teacher": "resnet1d"}, InputError, r"model 'resnet1d' takes series"),
        ({"teacher": "resnet9000"}, InputError, "resnet9000"),
        ({"teacher": "resnet32", "teacher_checkpoint": "weights"}, CheckpointError, "t.pt is of another architecture"),
        ({"teacher_checkpoint": "classes"}, CheckpointError, r"fc.weight has shape \(7, 64\), the model \(10, 64\)"),
    ],
    ids=["shape", "name", "architecture", "classes"],
)
def test_a_teacher_that_does_not_fit_is_refused_before_anything_is_written(tmp_path, change, error, message):
    if kind := change.get("teacher_checkpoint"):
        save_state(tmp_path / "t.pt", make_model("resnet20", 7 if kind == "classes" else 10, (1, 8, 8)).state_dict())
        change = {**change, "teacher_checkpoint": tmp_path / "t.pt"}
    config = small(tmp_path / "runs", **change)
    with pytest.raises(error, match=message):
        train(config, say=silent)
    assert not config.runs.exists()


QUANTIZERS = {  # zero point of activations, first range of weights
    "lsq": (False, "lsq"),
    "lsq_plus": (True, "sigma"),
    "pact": (False, "mse"),
    "dorefa": (False, "paper"),
    "minmax": (True, "minmax"),
}


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_quantizers_by_name(quantizer):
    assert set(QUANTIZERS) == set(fq.quantizers.list_quantizers())
    config = TrainConfig(qconfig="w4a4", quantizer=quantizer)
    model = make_student(config, make_model("resnet8", 10, (1, 8, 8)))
    layer = fq.calibrate(model, [torch.randn(8, 1, 8, 8)]).layer1[0].conv1
    zero_point, init = QUANTIZERS[quantizer]
    assert layer.weight_quantizer.spec.quantizer == layer.activation_quantizer.spec.quantizer == quantizer
    assert layer.weight_quantizer.zero_point is None and layer.weight_quantizer.init == init
    assert (layer.activation_quantizer.zero_point is not None) == zero_point
    assert model(torch.randn(2, 1, 8, 8)).isfinite().all()


def test_quantizers_refuse_what_they_have_not_before_anything_is_written(tmp_path):
    config = small(tmp_path / "runs", qconfig="w4a4:channel", quantizer="dorefa")
    with pytest.raises(InputError, match="granularity 'channel' with quantizer 'dorefa'"):
        train(config, say=silent)
    assert not config.runs.exists()


def test_learning_rates_of_activation_scales(tmp_path):
    config = small(tmp_path / "runs", qconfig="w4a4", scale_lr=0.002, activation_scale_lr=0.0003, teacher=None)
    run = Run(config, silent)
    groups = run._stage(run._student(), fq.train.folder.RunFolder(config.run_dir), []).optimizer.param_groups
    assert {group["name"]: group["lr"] for group in groups} == {
        "weights": 0.01, "no_decay": 0.01, "scales": 0.002, "activation_scales": 0.0003,
    }  # fmt: skip
    assert len(groups[2]["params"]) == len(groups[3]["params"]) == 6


def test_names_tell_teachers_and_quantizers_apart(tmp_path):
    changes = [{}, {"teacher": "resnet20"}, {"teacher_checkpoint": tmp_path / "a.pt"}, {"quantizer": "lsq_plus"}]
    changes += [{"teacher_checkpoint": tmp_path / "other" / "a.pt"}]
    assert len({TrainConfig(loss="kd", **change).run_name for change in changes}) == 5


@pytest.mark.parametrize(("change", "looked_at"), [({}, False), ({"loss": "kd"}, True), ({"select": "acs"}, True), ({"score": "ds"}, False),
                                                   ({"select": "topk", "score": "ds"}, True), ({"select": "topk"}, False)])  # fmt: skip
def test_a_teacher_that_nobody_looks_at_is_refused(change, looked_at):
    config = {"teacher": "resnet20", **change}
    if looked_at:
        assert teacher_config(TrainConfig(**config)).model == "resnet20"
    else:
        with pytest.raises(InputError, match="looks at a teacher; leave teacher out, or choose loss='kd'"):
            TrainConfig(**config)
    assert qconfig_of(TrainConfig(qconfig="none", quantizer="pact")) is None
