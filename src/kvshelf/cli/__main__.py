"""``python -m kvshelf.cli``: the ``kvshelf`` command where its script is not on the PATH."""

import sys

from kvshelf.cli.main import main

sys.exit(main())
