"""``python -m eyeline``."""

import sys

if not sys.flags.safe_path:  # data may lie in the current folder: import nothing from there
    del sys.path[0]

from eyeline.cli import main

sys.exit(main())
