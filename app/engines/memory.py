"""Memory that this process takes, on the machine and on GPUs, and its return to the system."""

import ctypes
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_MADV_DONTNEED = 4


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes in use."""

    host: int
    """Resident in the machine's memory, with the files that are mapped; 0 where it is unknown."""
    gpu: int
    """Reserved by torch on all GPUs."""

    def growth(self, before: "Memory", device: str) -> int:
        """Return the bytes that a model on this device has taken since `before`."""
        return self.host - before.host if device == "cpu" else self.gpu - before.gpu


def memory_in_use() -> Memory:
    """Return what is in use now."""
    if not _has_used_gpus():
        return Memory(_resident(), 0)
    cuda = sys.modules["torch"].cuda
    return Memory(_resident(), sum(cuda.memory_reserved(gpu) for gpu in range(cuda.device_count())))


def return_unused() -> None:
    """Have allocators return what is free to the system, which they keep otherwise. Blocks, for milliseconds."""
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    if _has_used_gpus():
        sys.modules["torch"].cuda.empty_cache()


def leave_pages(file: Path) -> None:
    """Leave the pages of a mapped file to the system's cache. Whoever needs one again reads it from there."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    for line in lines:
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == os.path.realpath(file) and fields[1].startswith("r-"):  # never what was written to
            start, end = (int(address, 16) for address in fields[0].split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)


def _has_used_gpus() -> bool:
    return "torch" in sys.modules and bool(sys.modules["torch"].cuda.is_initialized())


def _resident() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
