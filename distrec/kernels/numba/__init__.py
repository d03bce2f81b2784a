"""Compiled loops for CPUs. Their cache on disk is chosen here, before any of them is compiled."""

import os
import tempfile
from pathlib import Path

import numba


def _probe() -> None:
    pass


def _choose_cache() -> None:
    """Cache compiled code in a temporary folder of the user where neither the package nor the home can be written."""
    try:
        numba.njit(cache=True)(_probe)
    except RuntimeError:  # no locator available
        user = os.getuid() if hasattr(os, "getuid") else 0
        folder = Path(tempfile.gettempdir(), f"distrec-compiled-{user}")
        folder.mkdir(mode=0o700, exist_ok=True)
        if hasattr(os, "getuid") and folder.stat().st_uid != user:  # never load code that another user has written
            folder = Path(tempfile.mkdtemp())
        numba.config.CACHE_DIR = str(folder)


_choose_cache()
