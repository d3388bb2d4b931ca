"""System metrics: the load of this machine and process, under the names that MLflow's pages show."""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil

FILE = "system.jsonl"
_MB = 1e6


class SystemMetrics:
    """Samples the load of the machine.

    CPU shares are averages since the previous sample; network traffic counts from the creation of this object.

    Args:
        folder: the run's folder, whose `system.jsonl` receives the samples.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._process = psutil.Process()
        self._process.cpu_percent()
        psutil.cpu_percent()
        self._sent, self._received = self._network_bytes()

    def sample(self) -> None:
        """Appends one sample to the file."""
        memory = psutil.virtual_memory()
        sent, received = self._network_bytes()
        sample = {
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
            file.write(json.dumps(sample) + "\n")

    def _network_bytes(self) -> tuple[int, int]:
        counters = psutil.net_io_counters()  # None on a machine without a network
        return (counters.bytes_sent, counters.bytes_recv) if counters else (0, 0)
