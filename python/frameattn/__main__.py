"""``python -m frameattn`` is the command ``frameattn``."""

import sys

from frameattn.cli.main import main

sys.exit(main())
