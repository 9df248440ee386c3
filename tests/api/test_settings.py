"""Settings come from MANTA_* variables, and what cannot work is refused before anything starts."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from api import ports
from api.settings import Settings, SettingsInvalid


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_loopback_needs_no_token(host: str) -> None:
    assert Settings(host=host).token is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_any_other_address_does(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANTA_HOST", host)
    with pytest.raises(SettingsInvalid, match=r"MANTA_TOKEN is not set"):
        Settings.read()
    monkeypatch.setenv("MANTA_TOKEN", "long-enough-to-be-one")
    assert Settings.read().host == host


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [("MANTA_PORT", "70000", "MANTA_PORT: "), ("MANTA_NUM_CPUS", "two", "MANTA_NUM_CPUS: "), ("MANTA_TOKEN", "x", "shorter")],
)
def test_a_bad_value_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsInvalid, match=words):
        Settings.read()


def test_the_token_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANTA_TOKEN", "a-secret-of-some-length")
    assert "a-secret" not in repr(Settings.read())


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]


def test_homes_do_not_meet_and_sockets_stay_short(tmp_path: Path) -> None:
    one, two = Settings(home=tmp_path / "a"), Settings(home=tmp_path / "b")
    assert one.runtime_dir != two.runtime_dir
    assert one.store_url != two.store_url
    # Ray's longest: <temp>/session_YYYY-MM-DD_hh-mm-ss_microseconds_pid/sockets/plasma_store
    longest = one.runtime_dir / "session_2026-01-01_00-00-00_000000_4194304" / "sockets" / "plasma_store"
    assert len(str(longest)) < 107


def test_picked_ports_are_free_and_different() -> None:
    with ports.picked(50) as picked:
        assert len(set(picked)) == 50
        with ports.picked(50) as others:
            assert not set(picked) & set(others)
        assert all(ports.FIRST <= port <= ports.LAST for port in picked)


def test_the_databases_password_is_not_shown(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, database_url="postgresql://manta:hunter2@db/manta")
    assert "hunter2" not in repr(settings)
    assert settings.store_url == "postgresql://manta:hunter2@db/manta"
