"""Memory that pass after pass of a model frees and wants again."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
MOST_MMAP, MOST_TRIM = 2**25, 2**31 - 1  # the largest that it takes


def keep_freed() -> None:
    """Have glibc keep freed memory for this process, whose peak is the same: by default it gives large parts back to
    the system, and each page that is wanted again costs time, up to a tenth of a pass on a CPU. Other C libraries go on
    as they do."""
    set_option(M_MMAP_THRESHOLD, MOST_MMAP)
    set_option(M_TRIM_THRESHOLD, MOST_TRIM)


def set_option(parameter: int, value: int) -> None:
    """glibc's mallopt(3), where it is there."""
    function = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if function:
        function(parameter, value)
