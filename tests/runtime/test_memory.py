"""Memory that a process can still get."""

from __future__ import annotations

import os
from pathlib import Path

from mtkd.runtime import memory


def test_available_memory_is_bounded_by_what_every_cgroup_around_the_process_still_allows(tmp_path: Path) -> None:
    (tmp_path / "job/step").mkdir(parents=True)
    (tmp_path / "memory/old").mkdir(parents=True)
    (tmp_path / "job/memory.max").write_text("2000\n")
    (tmp_path / "job/memory.current").write_text("900\n")
    (tmp_path / "job/memory.stat").write_text("anon 600\ninactive_file 300\n")
    (tmp_path / "job/step/memory.max").write_text("max\n")
    (tmp_path / "job/step/memory.current").write_text("900\n")
    (tmp_path / "memory/old/memory.limit_in_bytes").write_text("3000\n")
    (tmp_path / "memory/old/memory.usage_in_bytes").write_text("1000\n")
    listing = tmp_path / "cgroup"
    listing.write_text("7:cpu,memory:/old\n3:freezer:/old\n0::/job/step\n")
    assert sorted(memory._cgroup_rooms(listing, tmp_path)) == [1400, 2000]
    assert memory._cgroup_rooms(tmp_path / "none", tmp_path) == []
    assert 2**20 < memory.available_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
