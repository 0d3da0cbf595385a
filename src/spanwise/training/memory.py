"""Measuring what a run really took: allocated bytes on a GPU, resident bytes elsewhere."""

import resource
import sys
from pathlib import Path

import torch
from torch.nn import functional as F


class PeakMemory:
    """The most memory in use since the object was made, above what was in use then.

    On CUDA these are the allocator's own counts. On a CPU it is resident memory, which also
    holds freed blocks that the C library keeps for reuse; setting MALLOC_MMAP_THRESHOLD_ to
    4194304 makes glibc give them back, at some cost in speed.

    Args:
        device: Where the model will lie.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
        else:
            _load_kernels()
            self._before = _resident()

    def restart(self) -> None:
        """Forget the peak so far, such as that of loading the model; the baseline stays."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            _reset_resident_peak()

    def read(self) -> int:
        """Peak bytes above the baseline."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self._before
        return _resident_peak() - self._before


def available(device: torch.device) -> int | None:
    """Free bytes on the device, or None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    fields = _fields("/proc/meminfo")
    return fields.get("MemAvailable")


def _load_kernels() -> None:
    # Libraries that load with the first product would otherwise count as the model's.
    x = torch.ones(1, 2, 32, 32, requires_grad=True)
    y = F.scaled_dot_product_attention(x, x, x, is_causal=True)
    F.cross_entropy((y @ y).flatten(0, 2), torch.zeros(64, dtype=torch.long)).backward()


def _resident() -> int:
    return _fields("/proc/self/status").get("VmRSS", _lifetime_peak())


def _resident_peak() -> int:
    return _fields("/proc/self/status").get("VmHWM", _lifetime_peak())


def _reset_resident_peak() -> None:
    # Linux forgets the high-water mark of a process that writes 5 here; elsewhere it stays.
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _lifetime_peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _fields(path: str) -> dict[str, int]:
    """The kB figures of a /proc file, in bytes; empty where there is none."""
    try:
        lines = Path(path).read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if line.endswith(" kB"))
    return {name: 1024 * int(value.split()[0]) for name, value in pairs}
