"""`python -m postgrad`, the same as `postgrad`."""

import sys

from postgrad.cli import main

sys.exit(main())
