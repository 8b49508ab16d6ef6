"""Peak memory of a stretch of work, and the versions and machine that a number was made with."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch


class Peak:
    """`mib`: most memory held since the stretch began; `None` where the system can't tell."""

    mib: float | None = None


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure the peak of the device's memory (CUDA), else of the process's resident memory (Linux)."""
    peak = Peak()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak.mib = torch.cuda.max_memory_allocated() / 2**20
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark of resident memory
    except OSError:
        yield peak
        return
    yield peak
    status = Path("/proc/self/status").read_text()
    peak.mib = int(status.split("VmHWM:")[1].split()[0]) / 1024


def resident() -> float | None:
    """MiB of memory that the process holds now; `None` where the system can't tell."""
    try:
        return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024
    except OSError:
        return None


def allocated() -> float:
    """MiB of CUDA memory in use; 0 without CUDA."""
    return torch.cuda.memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0


def versions() -> dict[str, str]:
    """The versions and the machine that a result depends on besides its recipe."""
    names = ("expunge", "torch", "transformers", "peft", "accelerate")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "device": device,
        "threads": str(torch.get_num_threads()),
    }
