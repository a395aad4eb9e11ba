"""`python -m sdpipe`: the same as the command `sdpipe`."""

import sys

from sdpipe.cli.app import main

sys.exit(main())
