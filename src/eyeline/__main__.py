"""``python -m eyeline``."""

import sys

from eyeline.cli import main

sys.exit(main())
