"""`python -m expunge`, for launchers such as `accelerate launch -m expunge run …`."""

import sys

from expunge.cli.main import main

sys.exit(main())
