"""Logging of a command: our own lines in short form, other libraries from warnings on, secrets masked."""

import logging
import os
import sys
import warnings

from expunge.secrets import MaskedFormatter


def leave_out_notices() -> None:
    """Hide deprecation warnings, which address programmers. Warnings about correctness stay."""
    for notice in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=notice)


def quiet_libraries() -> None:
    """Log our own lines from INFO on, in short form, and those of other libraries from WARNING on."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        if type(handler.formatter) is logging.Formatter:
            handler.setFormatter(MaskedFormatter(handler.formatter._fmt))
    logging.getLogger("expunge").setLevel(logging.INFO)
    # These report which of their kernels were not built for this machine.
    for chatty in ("torchao", "bitsandbytes", "torch.utils._pytree"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    leave_out_notices()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if not sys.stderr.isatty():  # a log keeps every state of a bar; tqdm and the hub read these when they are imported
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
