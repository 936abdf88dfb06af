"""``python -m fastqat``."""

import sys

from fastqat.cli import main

if __name__ == "__main__":
    sys.exit(main())
