"""What the systems say about their CPU, in the words of this package."""

from __future__ import annotations

import platform

import pytest

from onnxcompress.runtime import cpu as module

XEON = """processor : 0
model name\t: Intel(R) Xeon(R)
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse2 avx avx2 avx512f avx512_vnni amx_int8 fma

processor : 1
model name\t: Intel(R) Xeon(R)
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse2 avx avx2 avx512f avx512_vnni amx_int8 fma

processor : 2
physical id\t: 1
core id\t\t: 0
"""


def test_cpuinfo_of_an_x86() -> None:
    name, words, cores = module.parse_cpuinfo(XEON)
    assert name == "Intel(R) Xeon(R)" and cores == 2 and {"avx512_vnni", "amx_int8"} <= words


def test_cpuinfo_of_an_arm() -> None:
    name, words, cores = module.parse_cpuinfo("Features : fp asimd asimddp i8mm\n")
    assert name == "" and words == {"fp", "asimd", "asimddp", "i8mm"} and cores >= 1


def test_words_become_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.READERS, platform.system(), lambda: module.parse_cpuinfo(XEON))
    found = module.cpu.__wrapped__()
    assert found.instructions == ("avx", "fma", "avx2", "avx512f", "avx512_vnni", "amx_int8")
    assert str(found).startswith("Intel(R) Xeon(R) (avx, fma, avx2, avx512f, avx512_vnni, amx_int8), ")


def test_this_machine_and_an_unknown_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.cpu().name and module.cpu().threads >= 1 and module.cpu().cores >= 1
    monkeypatch.setattr(platform, "system", lambda: "Plan 9")
    found = module.cpu.__wrapped__()
    assert found.name and found.instructions == () and "instruction sets unknown" in str(found)


def test_macos_without_sysctl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    name, words, _ = module._macos()
    assert name == "" and words == set()
