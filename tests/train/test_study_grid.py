"""The file of a study: what it expands to, and what is refused before anything starts."""

from pathlib import Path

import pytest

from fastqat._errors import InputError
from fastqat.train.study_grid import float_differences, read_study


def study(folder: Path, text: str, name: str = "s", **given):
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return read_study(path, folder / "runs", **given)


def test_seeds_come_outermost_and_share_float_models(tmp_path):
    found = study(tmp_path, "base: {data: cifar10, threads: 2}\nseeds: 4\nfloat_seeds: 3\ncells: [{name: a}, {name: b, select: acs}]")
    assert [run.label for run in found.runs][:3] == ["a seed 0", "b seed 0", "a seed 1"]
    assert [run.config.float_seed for run in found.runs] == [0, 0, 1, 1, 2, 2, 0, 0]
    assert [len({run.float_models for run in found.runs if run.config.float_seed == seed}) for seed in range(3)] == [1, 1, 1]
    last = found.runs[-1].config
    assert last.run_dir == tmp_path / "runs/s/b-seed3" and last.float_cache == tmp_path / "runs/.float"
    assert (last.data, last.select, last.threads, last.seed, last.resume, last.report, last.progress) == (
        *("cifar10", "acs", 2, 3, True),
        *(False, False),
    )


def test_lists_are_multiplied_and_name_their_cells(tmp_path):
    cells = (
        "[{name: acs, loss: [ce, kd], bn_reestimate: [0, 20]}, {name: 'f{fraction}-{select}', select: [rs2, acs], fraction: [0.01, 0.1]}]"
    )
    found = study(tmp_path, f"base: {{epochs: 3}}\nseeds: [7]\ncells: {cells}")
    assert [run.cell for run in found.runs] == [
        *("acs-ce-bn_reestimate0", "acs-ce-bn_reestimate20", "acs-kd-bn_reestimate0", "acs-kd-bn_reestimate20"),
        *("f0.01-rs2", "f0.1-rs2", "f0.01-acs", "f0.1-acs"),
    ]
    assert [(run.config.loss, run.config.bn_reestimate, run.config.epochs, run.config.seed) for run in found.runs][2] == ("kd", 0, 3, 7)


def test_names_of_cells_need_no_quotes_in_a_shell(tmp_path):
    found = study(tmp_path, "base: {loss: kd_clc}\ncells: [{name: 'a-{clc_layers}', clc_layers: ['layer1.*,layer2', blocks]}]")
    assert [run.cell for run in found.runs] == ["a-layer1._layer2", "a-blocks"]


def test_settings_that_part_float_models_are_known(tmp_path):
    cells = "[{name: a, lr: [0.1, 0.2]}, {name: b, weight_decay: 0.0, val_fraction: 0.2}]"
    assert float_differences(study(tmp_path, f"seeds: 2\ncells: {cells}").runs) == ["weight_decay", "val_fraction"]
    text = "seeds: 2\nfloat_seeds: {}\nbase: {{float_checkpoint: 'w{{seed}}.pt'}}\ncells: [{{name: a, select: [acs, rs2]}}]"
    assert not float_differences(study(tmp_path, text.format(2)).runs)
    assert float_differences(study(tmp_path, text.format(1)).runs) == ["float_checkpoint"]


def test_a_list_in_base_goes_for_all_cells_and_recipes_lie_below(tmp_path):
    found = study(tmp_path, "base: {recipe: acs-cifar100, loss: [ce, kd], epochs: 5}\ncells: [{name: a}, {name: b, select: rs2}]")
    assert [run.cell for run in found.runs] == ["a-ce", "a-kd", "b-ce", "b-kd"]
    assert {(run.config.model, run.config.epochs) for run in found.runs} == {("mobilenet_v2_half", 5)}


def test_seeds_in_values_and_threads_of_the_command(tmp_path):
    text = "seeds: 3\nfloat_seeds: 2\ncells: [{name: a, float_checkpoint: 'w/{float_seed}-{seed}.pt', threads: 4}]"
    assert [str(run.config.float_checkpoint) for run in study(tmp_path, text).runs] == ["w/0-0.pt", "w/1-1.pt", "w/0-2.pt"]
    assert [run.config.threads for run in study(tmp_path, text, threads=1).runs] == [1, 1, 1]
    assert not study(tmp_path, text).runs[0].float_models and study(tmp_path, text).runs[0].is_past_float


@pytest.mark.parametrize(
    ("same", "first", "second"),
    [
        (True, "select: rs2", "select: acs, loss: kd, epochs: 3, lr: 0.5"),
        (False, "label_noise: 0.1", "label_noise: 0.0"),
        (False, "float_epochs: 3", "float_epochs: 4"),
        (False, "limit: 300", "limit: 400"),
    ],
)
def test_runs_that_train_the_same_float_model(tmp_path, same, first, second):
    a, b = study(tmp_path, f"cells: [{{name: a, {first}}}, {{name: b, {second}}}]").runs
    assert (a.float_models == b.float_models) is same and len(a.float_models) == 1


def test_an_oracle_teacher_is_the_float_model_of_a_run_without_noise(tmp_path):
    noise = "loss: kd, label_noise: 0.1"
    a, b, c = study(tmp_path, f"cells: [{{name: a, {noise}, oracle_teacher: true}}, {{name: b, {noise}}}, {{name: c, loss: kd}}]").runs
    assert a.float_models == b.float_models | c.float_models and len(a.float_models) == 2


def test_a_teacher_of_another_model_is_a_float_model_too(tmp_path):
    a, b = study(tmp_path, "cells: [{name: a, teacher: resnet20, loss: kd}, {name: b, model: resnet20}]").runs
    assert len(a.float_models) == 2 and b.float_models < a.float_models


def test_rows_go_beside_the_runs_or_to_results_of_a_source_tree(tmp_path):
    assert study(tmp_path, "cells: [{name: a}]").results == tmp_path / "runs/s"
    (tmp_path / "bench/studies").mkdir(parents=True)
    assert study(tmp_path / "bench/studies", "cells: [{name: a}]").results == tmp_path / "bench/studies/runs/s"
    (tmp_path / "bench/results").mkdir()
    assert study(tmp_path / "bench/studies", "cells: [{name: a}]").results == tmp_path / "bench/results"


BAD = {
    "no file": (None, "cannot read"),
    "no mapping": ("- a", "must hold a mapping"),
    "unknown key": ("cell: []", "unknown key cell; accepted: base, seeds, float_seeds, cells"),
    "no cells": ("seeds: 2", "cells must be a list of mappings"),
    "no name": ("cells: [{select: acs}]", "each with a name"),
    "base with a name": ("base: {name: x}\ncells: [{name: a}]", "base must be a mapping of settings, without a name"),
    "seeds": ("seeds: 0\ncells: [{name: a}]", "seeds must be a number, at least 1"),
    "a seed twice": ("seeds: [1, 1]\ncells: [{name: a}]", "a list of different seeds"),
    "float seeds": ("float_seeds: true\ncells: [{name: a}]", "float_seeds must be the number of float models"),
    "value": ("cells: [{name: a}, {name: acs, fraction: 2}]", "cell 'acs': fraction must lie in (0, 1]; got 2"),
    "setting": ("cells: [{name: a, selects: acs}]", "cell 'a': unknown setting 'selects'"),
    "type": ("base: {epochs: many}\ncells: [{name: a}]", "cell 'a': epochs must be int; got 'many'"),
    "recipe": ("base: {recipe: mine}\ncells: [{name: a}]", "cell 'a': recipe must be one of"),
    "own setting": ("cells: [{name: a, seed: 3}]", "cell 'a': seed cannot be set here"),
    "same name": ("cells: [{name: a}, {name: a, select: acs}]", "'a'"),
    "empty list": ("cells: [{name: a, loss: []}]", "cell 'a': loss is an empty list"),
    "placeholder": ("cells: [{name: 'a{fractoin}'}]", "cell 'a{fractoin}': the name must use settings of this cell or of base"),
    "folder name": ("cells: [{name: a/b}]", "name must be a single folder name"),
    "threads": ("base: {threads: null}\ncells: [{name: a}]", "cell 'a': threads must be a number in a study"),
}


@pytest.mark.parametrize("case", BAD)
def test_refusals(tmp_path, case):
    text, told = BAD[case]
    with pytest.raises(InputError, match="(?s)s.yaml") as caught:
        read_study(tmp_path / "s.yaml") if text is None else study(tmp_path, text)
    assert told in str(caught.value)


def test_the_studies_of_the_repository_are_whole(tmp_path):
    root = Path(__file__).parents[2] / "bench/studies"
    for path in sorted(root.glob("*.yaml")):
        found = read_study(path, tmp_path)
        assert found.runs and found.results == root.parent / "results", path
