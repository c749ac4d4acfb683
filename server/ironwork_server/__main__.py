"""`python -m ironwork_server`: the same as `ironwork-server`."""

import sys

from ironwork_server.cli.main import main

sys.exit(main())
