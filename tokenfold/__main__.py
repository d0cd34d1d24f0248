"""`python -m tokenfold`: the command line."""

import sys

from tokenfold.cli import main

sys.exit(main())
