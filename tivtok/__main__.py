"""``python -m tivtok`` is the command ``tivtok``."""

import sys

from tivtok.cli import main

sys.exit(main())
