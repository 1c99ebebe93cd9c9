"""`python -m lattica.testing.netlab`: see commands.py."""

import sys

from .commands import main

sys.exit(main())
