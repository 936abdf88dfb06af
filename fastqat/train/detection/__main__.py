"""``python -m fastqat.train.detection --data FOLDER``: `train_detector` with flags."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import tyro

from fastqat._errors import FastqatError
from fastqat._flag_names import in_flags
from fastqat.train.detection.config import DetectorConfig
from fastqat.train.detection.run import train_detector
from fastqat.train.table import print_table

EXIT_ERROR, EXIT_INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns the exit code: 0, 2 for an error that the user can mend, 130 after Ctrl-C."""
    try:
        config = tyro.cli(DetectorConfig, prog="python -m fastqat.train.detection", args=None if argv is None else list(argv))
        summary = train_detector(config)
    except KeyboardInterrupt:
        print("interrupted; the same command with --resume goes on", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (FastqatError, OSError) as error:
        print(f"error: {in_flags(' '.join(str(error).split()), DetectorConfig)}", file=sys.stderr)
        return EXIT_ERROR
    percent = {name: "-" if summary[name] is None else f"{100 * summary[name]:.2f} %" for name in ("float_ap", "ap", "ap50", "best_ap")}
    costs = {name: f"{summary[name]:,.0f}" for name in ("gradient_steps", "unique_samples", "scoring_forwards", "seconds")}
    print_table(("", "result"), list({**percent, **costs}.items()), str(config.run_dir))
    return 0


if __name__ == "__main__":
    sys.exit(main())
