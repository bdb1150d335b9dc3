"""The CPU that figures were measured on: its name, the instruction sets that decide about kernels, its cores."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Our word for an instruction set <- the words of Linux (flags on x86, Features on Arm) and of macOS (sysctl).
INSTRUCTIONS = {
    "avx": {"avx", "avx1.0"},
    "fma": {"fma"},
    "f16c": {"f16c"},
    "avx2": {"avx2"},
    "avx512f": {"avx512f"},
    "avx512_vnni": {"avx512_vnni", "avx512vnni"},
    "avx512_bf16": {"avx512_bf16"},
    "avx_vnni": {"avx_vnni"},
    "amx_int8": {"amx_int8"},
    "amx_bf16": {"amx_bf16"},
    "neon": {"asimd", "neon", "advsimd"},
    "dotprod": {"asimddp", "feat_dotprod"},
    "i8mm": {"i8mm", "feat_i8mm"},
    "sve": {"sve"},
}


@dataclass(frozen=True)
class Cpu:
    """instructions: keys of INSTRUCTIONS; cores: physical ones; threads: what this process may use at once."""

    name: str
    instructions: tuple[str, ...]
    cores: int
    threads: int

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.instructions) or 'instruction sets unknown'}), {self.threads} threads"


@functools.cache
def cpu() -> Cpu:
    """What this process runs on. Never fails: what the system does not tell stays empty."""
    name, words, cores = READERS.get(platform.system(), _anywhere)()
    known = tuple(ours for ours, theirs in INSTRUCTIONS.items() if theirs & words)
    return Cpu(name or platform.processor() or platform.machine() or "unknown", known, cores, threads_available())


def threads_available() -> int:
    """Threads that this process can run at once: its affinity mask, cut down by a container's CPU quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(allowed, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or the quota is "max"
        return allowed


def parse_cpuinfo(text: str) -> tuple[str, set[str], int]:
    """Name, feature words and number of physical cores from the text of Linux's /proc/cpuinfo."""
    names, words, cores, socket = [], set(), set(), ""
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key in ("model name", "Model", "Hardware"):
            names.append(value)
        elif key in ("flags", "Features"):
            words |= set(value.lower().split())
        elif key == "physical id":
            socket = value
        elif key == "core id":
            cores.add((socket, value))
    return names[0] if names else "", words, len(cores) or os.cpu_count() or 1


def _linux() -> tuple[str, set[str], int]:
    try:
        return parse_cpuinfo(Path("/proc/cpuinfo").read_text())
    except OSError:
        return _anywhere()


def _macos() -> tuple[str, set[str], int]:
    said = {}
    try:
        for line in subprocess.run(["sysctl", "-a"], capture_output=True, text=True, timeout=10).stdout.splitlines():
            key, _, value = line.partition(":")
            said[key] = value.strip()
    except (OSError, subprocess.TimeoutExpired):
        return _anywhere()
    words = set(f"{said.get('machdep.cpu.features', '')} {said.get('machdep.cpu.leaf7_features', '')}".lower().split())
    words |= {key.rsplit(".", 1)[-1].lower() for key, value in said.items() if "hw.optional" in key and value == "1"}
    return said.get("machdep.cpu.brand_string", ""), words, int(said.get("hw.physicalcpu") or os.cpu_count() or 1)


def _anywhere() -> tuple[str, set[str], int]:
    return "", set(), os.cpu_count() or 1


READERS: dict[str, Callable[[], tuple[str, set[str], int]]] = {"Linux": _linux, "Darwin": _macos}
