"""What launchers put into the environment."""

from __future__ import annotations

import pytest

from mtkd.contracts import MtkdError
from mtkd.runtime.launch import Place, environment_rank, place_of, started_by_torchrun

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "TORCHELASTIC_RUN_ID")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("launcher", "names"), [("pytorch", NAMES[:3]), ("slurm", NAMES[3:6])])
def test_a_process_knows_its_place(monkeypatch: pytest.MonkeyPatch, launcher: str, names: tuple[str, ...]) -> None:
    with pytest.raises(MtkdError, match=f"--launcher {launcher}: {names[0]} is not set.* teach"):
        place_of(launcher, "teach")
    for name, value in zip(names, ("5", "8", "1"), strict=True):
        monkeypatch.setenv(name, value)
    assert place_of(launcher, "teach") == Place(rank=5, world_size=8, local_rank=1)
    assert environment_rank() == 5


def test_a_process_alone_is_the_first() -> None:
    assert environment_rank() == 0 and not started_by_torchrun()


@pytest.mark.parametrize(("world", "several"), [("1", False), ("2", True)])
def test_torchrun_is_noticed_where_it_started_several(
    monkeypatch: pytest.MonkeyPatch, world: str, several: bool
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", world)
    assert started_by_torchrun() is several
