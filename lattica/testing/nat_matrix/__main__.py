"""`python -m lattica.testing.nat_matrix`: see the package."""

import sys

from .commands import main

sys.exit(main())
