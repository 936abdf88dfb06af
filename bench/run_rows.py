"""Rows of finished runs that no study made, in the form of a study's rows.

    python -m bench.run_rows NAME RUN...

writes ``bench/results/study_NAME.csv`` and its curve. A run that is not finished is an error.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fastqat.train.study_rows import write_rows

from .rows import RESULTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the study")
    parser.add_argument("runs", nargs="+", type=Path, help="run directories; the cell is a folder's name without -seedN")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the rows")
    args = parser.parse_args()
    print(write_rows(args.name, args.runs, args.out))


if __name__ == "__main__":
    main()
