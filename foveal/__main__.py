"""`python -m foveal` is the command `foveal`."""

import sys

from foveal.cli import main

sys.exit(main())
