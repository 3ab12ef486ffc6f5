import pytest


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    """Caches of these tests stay in their folder."""
    monkeypatch.setenv("MTKD_HOME", str(tmp_path / "home"))
