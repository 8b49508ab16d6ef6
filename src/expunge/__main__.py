"""`python -m expunge`, for launchers such as `accelerate launch -m expunge run …`."""

import sys

from expunge.cli import main

sys.exit(main())
