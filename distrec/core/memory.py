"""Memory that is free for this process."""

from pathlib import Path

import torch


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that are free on a device; for the CPU within the limit of the container. None if not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    limit, used = first_line("/sys/fs/cgroup/memory.max"), first_line("/sys/fs/cgroup/memory.current")
    return min(free, int(limit) - int(used)) if limit.isdecimal() and used.isdecimal() else free


def first_line(path: str) -> str:
    """Return the first line of a file, or "" where it cannot be read."""
    try:
        return Path(path).read_text().strip().split("\n")[0]
    except OSError:
        return ""
