"""What a process and those that it started hold in memory, now and at most."""

import os
import resource
import threading
from contextlib import suppress
from pathlib import Path


def children() -> dict[int, list[int]]:
    """Process -> those that it started, of the whole machine."""
    found: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            found.setdefault(parent, []).append(int(path.parent.name))
    return found


def tree(process: int) -> list[int]:
    """A process, what it started, and so on."""
    started, found = children(), [process]
    for each in found:
        found += started.get(each, ())
    return found


def held(process: int) -> float:
    """MiB of one process; pages that several share are shared out among them. 0 where it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def memory(process: int) -> float:
    """MiB of a process and all that it started."""
    return sum(map(held, tree(process)))


class Watch:
    """Samples the memory of process trees while it is open: name -> MiB, one for each `every` seconds."""

    def __init__(self, processes: dict[str, int], every: float):
        self.processes, self.every = processes, every
        self.samples: dict[str, list[float]] = {name: [] for name in processes}
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.sample, daemon=True)

    def sample(self) -> None:
        """Until it is closed."""
        while not self.over.wait(self.every):
            for name, process in self.processes.items():
                self.samples[name].append(memory(process))

    def __enter__(self) -> "Watch":
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.thread.join()


def status(name: str, process: int | str = "self") -> int:
    """MiB of a line in a process's status; 0 where it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) // 1024
    return 0


class Growth:
    """What this process and all that it started have added to their memory since this was made, at most."""

    def __init__(self):
        Path("/proc/self/clear_refs").write_text("5")  # its peak is measured anew
        self.before, self.ended = status("VmRSS") + self.living(), self.largest_ended()

    @staticmethod
    def living() -> int:
        """MiB of the peaks of what was started and lives."""
        own = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        return sum(status("VmHWM", each) for first in own for each in tree(int(first)))

    @staticmethod
    def largest_ended() -> int:
        """MiB of the largest process that was started and has ended; one that runs another program begins as large as this one."""
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024

    def peak(self) -> int:
        """MiB."""
        own, ended = status("VmHWM"), self.largest_ended()
        return max(0, own + self.living() + (ended if ended > max(self.ended, own) else 0) - self.before)
