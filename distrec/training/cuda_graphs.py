"""CUDA graphs of a training step, or of its parts, captured when their sizes repeat."""

import contextlib
import gc
import warnings
from collections.abc import Callable, Hashable

import torch


class CudaGraphs:
    """Graphs in one pool of memory.

    Args:
        device: the GPU. On another device nothing is captured.
        captures: whether anything is to be captured.
    """

    def __init__(self, device: torch.device, captures: bool) -> None:
        self._device = device
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._seen: set[Hashable] = set()
        self.captures = captures and device.type == "cuda"
        """Whether graphs are still captured."""
        if self.captures:
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self._graphs)

    def run(self, part: Callable[..., None], *size: int) -> None:
        """Run `part(*size)`: replay its graph, capture it before, or launch its operations one by one.

        The first of a size is launched, which compiles and loads its programs: a capture cannot.
        """
        key = part.__name__, size, torch.are_deterministic_algorithms_enabled()
        if key in self._seen and key not in self._graphs and self.captures:
            try:
                self._graphs[key] = self._capture(part, size)
            except RuntimeError as error:
                self.captures = False
                self._end_capture()
                warnings.warn(f"steps cannot be captured as a CUDA graph, and are slower: {error}", stacklevel=2)
        self._seen.add(key)
        if key in self._graphs:
            self._graphs[key].replay()
        else:
            part(*size)

    def _capture(self, part: Callable[..., None], size: tuple[int, ...]) -> torch.cuda.CUDAGraph:
        """Capture a step, or a part of one.

        Not by `torch.cuda.graph`, which collects garbage first: that takes longer than capturing. Nothing is collected
        meanwhile instead, as to free another graph would end the capture.
        """
        graph, collecting, here = torch.cuda.CUDAGraph(), gc.isenabled(), torch.cuda.current_stream(self._device)
        gc.disable()
        try:
            self._stream.wait_stream(here)
            with torch.cuda.stream(self._stream):
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    part(*size)
                except BaseException:
                    with contextlib.suppress(RuntimeError):  # that the capture was ended before: by the first error
                        graph.capture_end()
                    raise
                graph.capture_end()
            here.wait_stream(self._stream)
        finally:
            if collecting:
                gc.enable()
        return graph

    def _end_capture(self) -> None:
        """Free what a capture that failed leaves behind: a generator that takes itself for captured, memory in use.

        torch 2.11 ends neither, so that random numbers and replays raise errors from then on. The graphs captured
        before have the old state of the generator, and cannot be replayed.
        """
        self._graphs.clear()
        generator = torch.cuda.default_generators[self._stream.device_index]
        generator.graphsafe_set_state(generator.clone_state())
        with contextlib.suppress(RuntimeError):  # that nothing is allocated there: by a version that ends it
            torch._C._cuda_endAllocateToPool(self._stream.device_index, self._pool)
            torch._C._cuda_releasePool(self._stream.device_index, self._pool)
