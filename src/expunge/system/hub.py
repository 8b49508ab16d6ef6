"""Whether Hugging Face's hub answers, asked once: its own client retries for half a minute before it says no."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from expunge.errors import first_line

log = logging.getLogger(__name__)

SECONDS = 5
"""How long the hub may take to answer."""


@contextmanager
def asked() -> Iterator[None]:
    """Within this context the hub is asked; where it does not answer, its libraries look in their caches alone."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not answers()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@cache
def answers() -> bool:
    """Whether the hub can be reached. Where it can't, a warning says why; it is not asked again in this process."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception as error:
        log.warning("%s does not answer (%s); only what is kept here is used", constants.ENDPOINT, first_line(error))
        return False
    return True
