"""What the machine and this process take, as lines of `system.jsonl` under the names that MLflow's pages know."""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil

FILE = "system.jsonl"
_MB = 1e6


class Machine:
    """Samples what is taken now; shares of processors are since the last sample, the network since the first.

    Args:
        folder: that receives the lines.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._process = psutil.Process()
        self._process.cpu_percent()
        psutil.cpu_percent()
        self._sent, self._received = self._bytes()

    def sample(self) -> None:
        """Adds a line."""
        memory = psutil.virtual_memory()
        sent, received = self._bytes()
        line = {
            "time": time.time(),
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": (memory.total - memory.available) / _MB,
            "system/system_memory_usage_percentage": memory.percent,
            "system/network_transmit_megabytes": (sent - self._sent) / _MB,
            "system/network_receive_megabytes": (received - self._received) / _MB,
            "system/process_cpu_utilization_percentage": self._process.cpu_percent(),
            "system/process_memory_megabytes": self._process.memory_info().rss / _MB,
        }
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _bytes(self) -> tuple[int, int]:
        counted = psutil.net_io_counters()  # None where there is no network
        return (counted.bytes_sent, counted.bytes_recv) if counted else (0, 0)
