"""``fastqat detect``: its flags, the settings of a file, its errors, and names of runs."""

from dataclasses import replace

import pytest

from fastqat import cli
from fastqat.train.detection import DetectorConfig

from .detection_runs import shapes


def test_names_tell_runs_apart():
    usual = DetectorConfig(data="coco")
    assert usual.run_name == "coco-retinanet_resnet50_fpn-w4a4-acs10-labels-seed0"
    others = [{"interval": 5}, {"interval": None}, {"schedule": "linear"}, {"first_select": "random"}, {"epochs": 6}, {"lr": 0.01}]
    names = {replace(usual, **other).run_name for other in [{}, *others, {"data": "other/coco"}, {"bn_reestimate": 20}]}
    assert len(names) == 9
    assert replace(usual, resume=True, progress=False, runs="elsewhere").run_name == usual.run_name


def test_the_command_runs_and_tells_errors_in_a_line(one_thread, tmp_path, capsys):
    pytest.importorskip("torchvision")
    pytest.importorskip("PIL")
    data = shapes(tmp_path)
    flags = ["--train-split", "train", "--val-split", "None", "--model", "retinanet_tiny", "--min-size", "64", "--max-size", "64"]
    flags += ["--float-epochs", "1", "--epochs", "1", "--workers", "0", "--fraction", "0.5", "--runs", str(tmp_path)]
    assert cli.main(["detect", "--data", str(data), *flags, "--name", "one"]) == 0
    assert "gradient_steps" in capsys.readouterr().out
    again = ["detect", "--config", str(tmp_path / "one" / "config.yaml"), "--runs", str(tmp_path)]
    assert cli.main([*again, "--name", "two", "--select", "random"]) == 0
    one, two = (DetectorConfig.from_yaml(tmp_path / name / "config.yaml") for name in ("one", "two"))
    assert two == replace(one, select="random")
    assert cli.main(["detect", "--resume", "--name", "two", "--runs", str(tmp_path)]) == 0  # the run's own settings
    assert "is finished" in capsys.readouterr().out
    for wrong, told in ((["--data", str(tmp_path / "nowhere")], "instances_train2017.json"), (["--batch-size", "0"], "batch_size must be")):
        assert cli.main(["detect", *wrong]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and told in error and error.count("\n") == 1


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "detect", replace(cli.COMMANDS["detect"], run=interrupted))
    assert cli.main(["detect", "--name", "a", "--runs", str(tmp_path)]) == cli.EXIT_INTERRUPTED
    assert f"go on with: fastqat detect --resume --name a --runs {tmp_path}" in capsys.readouterr().err
