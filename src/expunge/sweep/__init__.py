"""`expunge sweep`: many recipes, each run once, and the best of them; killed at any moment, it goes on where it was.

`space` says what is tried, `definition` what a sweep is, `study` is the queue of its trials, `trial` what one of them
does and what all share, `worker` a process that works the queue off, `choice` reads the trials and chooses one, and
`command` is the order of it all. None of them knows a loss or how a metric comes about. Extra: `expunge[sweep]`.
"""

from expunge.sweep.command import sweep
from expunge.sweep.space import Space

__all__ = ["Space", "sweep"]
