"""The garbage collector while a server serves.

Modules and services stay until the end, and what calls leave behind is freed by itself but for a
few cycles: looking for those at every turn takes an eighth of the server's time.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# Of the youngest objects, and of collections of younger ones, until the next collection.
THRESHOLDS = (20_000, 20, 20)


@contextmanager
def rarely_collected() -> Iterator[None]:
    """Leave out what is there now, and look at what comes less often.

    What somebody else has frozen stays as it is: it could only be given back together with ours.
    """
    thresholds = gc.get_threshold()
    freezes = gc.get_freeze_count() == 0
    if freezes:
        gc.collect()
        gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        if freezes:
            gc.unfreeze()
