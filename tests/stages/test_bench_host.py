from __future__ import annotations

import os
import platform
import resource
import time
from pathlib import Path

import pytest

from stages.bench import proc
from stages.bench.system import software, system


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_nothing_readable_is_none_everywhere(tmp_path: Path) -> None:
    readers = (proc.cpu_model, proc.cgroup_quota, proc.psi_cpu, proc.loadavg, proc.run_delay_ns, proc.freq_mhz)
    assert [reader(tmp_path) for reader in readers] == [None] * 6
    assert proc.isa(tmp_path) == ()
    assert proc.meminfo("MemTotal", tmp_path) is None
    assert proc.process_memory("VmHWM", tmp_path) is None
    facts = system(tmp_path)
    assert (facts.cpu_model, facts.governor, facts.loadavg, facts.virt, facts.board) == (None, None, None, None, None)


def test_x86(tmp_path: Path) -> None:
    root = _write(
        tmp_path,
        {
            "proc/cpuinfo": "model name\t: Some CPU\nflags\t\t: fpu avx2 avx512_vnni hypervisor\n\nmodel name : B\n",
            "proc/meminfo": "MemTotal:       1000 kB\nMemAvailable:    500 kB\nSwapTotal: 0 kB\n",
            "proc/loadavg": "0.50 0.25 0.10 1/93 5525\n",
            "proc/pressure/cpu": "some avg10=12.34 avg60=0.07 avg300=0.20 total=5832044\nfull avg10=0.00\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1200000\n",
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "2400000\n",
            "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "3000000\n",
        },
    )
    facts = system(root)
    assert facts.cpu_model == "Some CPU"
    assert facts.isa == ("avx2", "avx512_vnni")
    assert facts.virt == "vm"
    assert facts.mem_total_bytes == 1000 * 1024
    assert facts.mem_available_bytes == 500 * 1024
    assert facts.loadavg == (0.5, 0.25, 0.1)
    assert facts.psi_cpu == 12.34
    assert facts.governor == "powersave"
    assert facts.freq_max_mhz == 3000.0
    assert proc.freq_mhz(root) == 2400.0


def test_arm_board(tmp_path: Path) -> None:
    root = _write(
        tmp_path,
        {
            "proc/cpuinfo": "Features\t: fp asimd asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n",
            "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\x00",
        },
    )
    facts = system(root)
    assert facts.cpu_model == "implementer 0x41 part 0xd0b"
    assert facts.isa == ("asimd", "asimddp")
    assert facts.board == "Raspberry Pi 5 Model B Rev 1.0"


def test_the_fingerprint_changes_with_the_processor_and_not_with_load(tmp_path: Path) -> None:
    root = _write(tmp_path, {"proc/cpuinfo": "model name : A\ncpu MHz : 1000\n", "proc/loadavg": "1 1 1 1/1 1\n"})
    before = system(root).fingerprint
    _write(tmp_path, {"proc/cpuinfo": "model name : A\ncpu MHz : 1003\n", "proc/loadavg": "9 9 9 1/1 1\n"})
    assert system(root).fingerprint == before
    _write(tmp_path, {"proc/cpuinfo": "model name : B\n"})
    assert system(root).fingerprint != before


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "50000 100000\n"}, 0.5),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "200000 100000\n",
            },
            2.0,
        ),
        # A container sees the host's path, but its own group at the root.
        ({"proc/self/cgroup": "0::/docker/123\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3.0),
        (
            {
                "proc/self/cgroup": "1:cpu,cpuacct:/x\n0::/\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            },
            2.5,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_cgroup_quota(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    root = _write(tmp_path, files)
    assert proc.cgroup_quota(root) == quota
    cores = proc.cores_effective(root)
    assert 1 <= cores <= max(1, int(quota or 10**6))


def test_run_delay_sums_threads_and_skips_one_that_just_ended(tmp_path: Path) -> None:
    root = _write(tmp_path, {"proc/self/task/1/schedstat": "10 7 1\n", "proc/self/task/2/schedstat": "20 5 1\n"})
    (root / "proc/self/task/3").mkdir()
    assert proc.run_delay_ns(root) == 12


@pytest.mark.skipif(platform.system() != "Linux", reason="/proc is Linux")
def test_on_this_host_the_readers_agree_with_the_standard_library() -> None:
    assert proc.process_memory("VmHWM") == pytest.approx(
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, rel=0.05
    )
    assert proc.loadavg() == pytest.approx(os.getloadavg(), abs=1.0)
    before, start = proc.run_delay_ns(), time.perf_counter_ns()
    after = proc.run_delay_ns()
    if before is not None and after is not None:
        assert 0 <= after - before <= 64 * (time.perf_counter_ns() - start) + 10**9


def test_versions_of_what_is_installed() -> None:
    versions = software()
    assert versions["python"] == platform.python_version()
    assert {"numpy", "train-to-edge"} <= set(versions)
