"""Whether there is a Triton that the programs for GPUs can use. Loads it only when asked."""

_OLDEST = (3, 6)  # before it numbers lost digits on their way to the GPU, or float32 was flushed to 0 early


def triton_lacks() -> str | None:
    """What keeps programs for GPUs from running, wherever the tensors are."""
    try:
        import triton  # here, as it may be missing, and takes a good part of a second
    except ImportError:
        return "the package triton, which is not installed"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < _OLDEST:
        return f"triton {'.'.join(map(str, _OLDEST))} or newer, not {triton.__version__}"
    return None
