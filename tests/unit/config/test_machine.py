from pathlib import Path

import pytest

from glinthawk.config import count_cores, count_memory, machine
from glinthawk.config.machine import read_cpu_limit, read_memory_limit


def write(folder: Path, **contents: str) -> Path:
    """Lay out a control group; `__` in a name parts folder and file, `_` stands for itself."""
    for name, content in contents.items():
        path = folder / name.replace("__", "/").replace("DOT", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n", encoding="ascii")
    return folder


def test_limits_of_the_second_version_are_read(tmp_path: Path) -> None:
    group = write(tmp_path, cpuDOTmax="250000 100000", memoryDOTmax="1073741824")
    assert read_cpu_limit(group) == 2.5
    assert read_memory_limit(group) == 1 << 30


def test_limits_of_the_first_version_are_read(tmp_path: Path) -> None:
    group = write(
        tmp_path,
        cpu__cpuDOTcfs_quota_us="50000",
        cpu__cpuDOTcfs_period_us="100000",
        memory__memoryDOTlimit_in_bytes="268435456",
    )
    assert read_cpu_limit(group) == 0.5
    assert read_memory_limit(group) == 256 << 20


@pytest.mark.parametrize(
    "contents",
    [
        {},
        {"cpuDOTmax": "max 100000", "memoryDOTmax": "max"},
        {"cpu__cpuDOTcfs_quota_us": "-1", "cpu__cpuDOTcfs_period_us": "100000"},
    ],
)
def test_a_group_without_limits_has_none(tmp_path: Path, contents: dict[str, str]) -> None:
    group = write(tmp_path, **contents)
    assert read_cpu_limit(group) is None
    assert read_memory_limit(group) is None


@pytest.mark.parametrize(("quota", "cores"), [("50000", 1), ("100000", 1), ("199999", 1)])
def test_only_whole_cores_count_and_there_is_always_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    monkeypatch.setattr(machine, "CGROUPS", write(tmp_path, cpuDOTmax=f"{quota} 100000"))
    assert count_cores() == cores


def test_a_limit_above_the_machine_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "none")
    cores, memory = count_cores(), count_memory()
    group = write(tmp_path, cpuDOTmax="99900000 100000", memoryDOTmax=str(1 << 60))
    monkeypatch.setattr(machine, "CGROUPS", group)
    assert (count_cores(), count_memory()) == (cores, memory)


def test_memory_ends_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CGROUPS", write(tmp_path, memoryDOTmax=str(64 << 20)))
    assert count_memory() == 64 << 20
