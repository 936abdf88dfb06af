"""The command line: every command is a dataclass of flags and one call into the package."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fastqat._distributed import world
from fastqat._errors import FastqatError, InputError, ProcessError
from fastqat._flag_names import in_flags, value_of
from fastqat._torchrun import asked_for, first_speaks, started, took_part
from fastqat.train.config import TrainConfig, TrainFlags
from fastqat.train.detection.command import detect_command, parse_detect
from fastqat.train.detection.config import DetectorConfig, DetectorFlags
from fastqat.train.folder import saved_config
from fastqat.train.study_flags import check_single, study_arguments, study_command

EXIT_ERROR, EXIT_INTERRUPTED = 2, 130


@dataclass(frozen=True)
class ScoreArgs:
    """Score every sample of a data set with the model of a run, and save the table."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run directory, such as runs/NAME."""
    scores: tuple[str, ...] | None = None
    """Names of scores: evs, ds, res, grand, entropy, confidence, margin, loss, ...; aum, forgetting, ... are those of the float training;
    default: evs ds, with folds: evs loss margin."""
    features: str | None = None
    """Keep features too, for selectors that compare samples: embedding, error, gradient, scale_grads, probabilities, or the name of a
    module, whose input it is."""
    folds: int | None = None
    """Score every sample with a float model that has not seen it: train one on the other parts for each of N parts; tells wrong labels."""
    data: str | None = None
    """Data set; default: the run's own."""
    split: Literal["pool", "train", "test"] = "pool"
    """pool: the samples that the run chose from, in the order of its selections; train, test: the whole training or test set."""
    checkpoint: Path | None = None
    """Checkpoint of the model to score with; default: the run's best. (A pass that was killed goes on by itself, from OUTPUT.progress.)"""
    output: Path | None = None
    """File of the table, .npz, .parquet or .safetensors: index, label, every score; default: RUN/scores_SPLIT.npz, with folds
    RUN/scores_SPLIT_foldsN.npz."""
    teacher_cache: Path | None = None
    """File that keeps the float model's logits: scoring the same data again then runs the quantized model only."""
    max_gib: float = 2.0
    """Most GiB of memory for features, those included that scores compare samples by."""
    device: str = "auto"
    """auto (cuda where there is one), cpu, cuda, ..."""
    progress: bool = True
    """Show a progress bar on a terminal."""


@dataclass(frozen=True)
class ReportArgs:
    """Write the report of a run, or one page that compares several."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run directories, such as runs/NAME."""
    output: Path = Path("comparison.html")
    """Page that compares several runs."""


@dataclass(frozen=True)
class DemoArgs:
    """Digits, W2A32: all data, a random tenth, the tenth that ACS picks; a table and a page that compares them."""

    runs: Path = Path("runs/demo")
    """Folder of the run directories; runs of an earlier demo in it are replaced."""
    seed: int = 0
    """Seed of everything."""
    threads: int = 1
    """CPU threads; a net this small gains nothing from more."""


@dataclass(frozen=True)
class InfoArgs:
    """Say what is installed, what was built, and which backend serves which op."""


def train_command(config: TrainConfig) -> None:
    """``fastqat train``."""
    if config.study is not None:
        from fastqat.train.study import run_study

        run_study(config.study, **study_arguments(config), say=_say)
        return
    from fastqat.train.run import train
    from fastqat.train.table import print_summary

    check_single(config)
    print_summary(train(config, say=_say))


def score_command(args: ScoreArgs) -> None:
    """``fastqat score``."""
    from fastqat.selection.table_files import check_ending
    from fastqat.train.score import score_folds, score_run
    from fastqat.train.table import print_issues, print_scores

    parts = "" if args.folds is None else f"_folds{args.folds}"
    output = args.output or args.run / f"scores_{args.split}{parts}.npz"
    check_ending(output)
    given: dict[str, Any] = {"data": args.data, "device": args.device, "progress": args.progress}
    if args.folds is not None:
        defaults = ScoreArgs(args.run)
        names = ("features", "teacher_cache", "checkpoint", "split", "max_gib")
        if wrong := [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) != getattr(defaults, name)]:
            raise InputError(
                f"--folds trains float models on parts of the pool and keeps their probabilities; leave out {', '.join(wrong)}"
            )
        table = score_folds(args.run, args.folds, args.scores, say=_say, **given)
    else:
        given |= {name: getattr(args, name) for name in ("split", "checkpoint", "features", "teacher_cache")}
        given |= {"max_bytes": _bytes(args.max_gib), "resume": output.with_name(output.name + ".progress")}
        table = score_run(args.run, args.scores, **given)
    if world().rank == 0:
        table.save(output)
    print_scores(table)
    if args.folds is not None:
        print_issues(table)
    _say(f"saved: {output}")


def _bytes(gib: float) -> int:
    if not 0 < gib < 2**30:
        raise InputError(f"max_gib must be a positive number of GiB; got {gib}")
    return int(gib * 2**30)


def report_command(args: ReportArgs) -> None:
    """``fastqat report``."""
    from fastqat.train.report import comparison_lines, write_comparison, write_report
    from fastqat.train.table import print_table

    if not args.runs:
        raise InputError("report needs a run directory, such as runs/NAME")
    if len(args.runs) == 1:
        _say(str(write_report(args.runs[0])))
        return
    header, *rows = comparison_lines(args.runs)
    print_table(header, rows)
    _say(str(write_comparison(args.runs, args.output)))


def demo_command(args: DemoArgs) -> None:
    """``fastqat demo``."""
    from fastqat.train.demo import demo

    demo(args.runs, args.seed, args.threads, say=_say)


def bench_command(args: Any) -> None:
    """``fastqat bench``."""
    from fastqat._bench.run import main as bench

    bench(**vars(args))


def info_command(args: InfoArgs) -> None:
    """``fastqat info``."""
    from fastqat._info import info_text

    _say(info_text())


def _say(line: str) -> None:
    print(line, flush=True)


def _parse_train(argv: Sequence[str]) -> TrainConfig:
    """Flags over the settings of ``--config``, or of the run that ``--resume --name`` names, over ``--recipe``, over the defaults."""
    config, name, recipe = (value_of(argv, flag) for flag in ("--config", "--name", "--recipe"))
    default = TrainConfig.of({"recipe": None if recipe == "None" else recipe})
    if config is not None:
        default = TrainConfig.from_yaml(Path(config), recipe)
    elif "--resume" in argv and name is not None:
        runs = Path(value_of(argv, "--runs") or default.runs)
        if (saved := saved_config(runs / name)) is not None and default.recipe not in (None, saved.recipe):
            raise InputError(f"run {runs / name} has settings of its own; leave out --recipe to resume it, or choose another --name")
        default = replace(saved or default, name=name, runs=runs)
    default = replace(default, resume=False, overwrite=False)
    flags = tyro.cli(TrainFlags, prog="fastqat train", args=list(argv), default=TrainFlags(**vars(default)))
    return TrainConfig(**vars(flags))


def _parser(kind: Any, name: str) -> Callable[[Sequence[str]], Any]:
    return lambda argv: tyro.cli(kind, prog=f"fastqat {name}", args=list(argv))


def _parse_bench(argv: Sequence[str]) -> Any:
    from fastqat._bench.run import BenchArgs

    return tyro.cli(BenchArgs, prog="fastqat bench", args=list(argv))


@dataclass(frozen=True)
class Command:
    """One command: reads its arguments, does it, what ``fastqat --help`` says about it, whether torchrun may start it, and the dataclass of
    its flags, where messages of the library name them as arguments of Python.
    """

    parse: Callable[[Sequence[str]], Any]
    run: Callable[[Any], None]
    about: str
    several: bool = False
    flags: Any = None


COMMANDS: dict[str, Command] = {
    "train": Command(_parse_train, train_command, "train a quantized network on a chosen part of the data", True, TrainFlags),
    "detect": Command(parse_detect, detect_command, "the same for RetinaNet on a folder in COCO's layout", flags=DetectorFlags),
    "score": Command(
        _parser(ScoreArgs, "score"), score_command, "score every sample of a data set with the model of a run", True, ScoreArgs
    ),
    "report": Command(_parser(ReportArgs, "report"), report_command, "write the report of a run, or compare several"),
    "demo": Command(_parser(DemoArgs, "demo"), demo_command, "digits in a minute or two: all data, a random tenth, the ACS tenth"),
    "bench": Command(_parse_bench, bench_command, "measure speed and memory against a copy and other packages"),
    "info": Command(_parser(InfoArgs, "info"), info_command, "what is installed, built and available"),
}


def usage() -> str:
    """What ``fastqat --help`` prints."""
    lines = (f"  {name:<8}{command.about}" for name, command in COMMANDS.items())
    return "\n".join(["usage: fastqat COMMAND [flags]", "", *lines, "", "fastqat COMMAND --help explains its flags."])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for an error that the user can mend, 130 after Ctrl-C. Under torchrun the process exits.

    ``FASTQAT_DEBUG=1`` shows the traceback of an error.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        _say(usage())
        return 0 if argv else EXIT_ERROR
    if argv[0] not in COMMANDS:
        print(f"error: unknown command {argv[0]!r}; accepted: {', '.join(COMMANDS)}", file=sys.stderr)
        return EXIT_ERROR
    code = _run(COMMANDS[argv[0]], argv[1:])
    if took_part():  # threads of gloo and nccl can abort in the interpreter's teardown
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(command: Command, argv: Sequence[str]) -> int:
    args = None
    try:
        if not command.several and asked_for() > 1:
            raise InputError(f"this command runs in one process; got WORLD_SIZE={asked_for()}; start it without torchrun")
        with started() if command.several else contextlib.nullcontext(), first_speaks():
            args = command.parse(argv)
            command.run(args)
    except KeyboardInterrupt:
        print(f"interrupted{_how_to_resume(args)}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except ProcessError as error:
        if not error.told:
            print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except (FastqatError, ValueError, TypeError, OSError) as error:
        if os.environ.get("FASTQAT_DEBUG", "0") not in ("", "0"):
            traceback.print_exc()
        print(f"error: {in_flags(' '.join(str(error).split()), command.flags)}", file=sys.stderr)
        return EXIT_ERROR
    return 0


def _how_to_resume(args: Any) -> str:
    if not isinstance(args, (TrainConfig, DetectorConfig)):
        return ""
    if isinstance(args, TrainConfig) and args.study is not None:
        return f"; the same command goes on: {study_command(args)}"
    runs = "" if args.runs == type(args)().runs else f" --runs {args.runs}"
    launcher = "torchrun ... -m " if took_part() else ""
    command = "detect" if isinstance(args, DetectorConfig) else "train"
    return f"; go on with: {launcher}fastqat {command} --resume --name {args.run_name}{runs}"
