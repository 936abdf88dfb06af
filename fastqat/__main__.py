"""``python -m fastqat``."""

import sys

from fastqat.cli import main

sys.exit(main())
