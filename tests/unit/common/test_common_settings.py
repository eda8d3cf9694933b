"""Settings out of the environment."""

import pytest
from pydantic import Field, ValidationError

from services.common.settings import ServiceSettings, parse_duration, settings_config
from services.common.yaml_file import ConfigError


class ToySettings(ServiceSettings):
    model_config = settings_config("LLMMESH_TOY_")

    limit: int = Field(5, ge=1, description="A limit.")
    names: tuple[str, ...] = Field((), description="Names.")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    for name in ("LIMIT", "LIMITS", "NAMES", "PORT"):
        monkeypatch.delenv(f"LLMMESH_TOY_{name}", raising=False)


def test_defaults_and_overrides(monkeypatch):
    assert ToySettings.load().limit == 5
    monkeypatch.setenv("LLMMESH_TOY_LIMIT", "7")
    monkeypatch.setenv("LLMMESH_TOY_NAMES", '["a", "b"]')
    assert (ToySettings.load().limit, ToySettings.load().names) == (7, ("a", "b"))


@pytest.mark.parametrize("name", ["LLMMESH_TOY_LIMITS", "LLMMESH_TOY_", "LLMMESH_TOY_LIMI", "llmmesh_toy_limits"])
def test_a_misspelt_variable_is_an_error_that_names_it_and_the_known_ones(monkeypatch, name):
    monkeypatch.setenv(name, "7")
    with pytest.raises(ConfigError) as caught:
        ToySettings.load()
    assert f"unknown setting {name};" in str(caught.value)
    assert "LLMMESH_TOY_LIMIT," in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"), [("LIMIT", "0"), ("LIMIT", "many"), ("PORT", "70000"), ("LOG_LEVEL", "loud")]
)
def test_a_value_out_of_range_is_an_error_that_names_its_variable(monkeypatch, name, value):
    monkeypatch.setenv(f"LLMMESH_TOY_{name}", value)
    with pytest.raises(ConfigError, match=f"LLMMESH_TOY_{name}: "):
        ToySettings.load()


def test_json_that_is_none_is_a_configuration_error(monkeypatch):
    monkeypatch.setenv("LLMMESH_TOY_NAMES", "a,b")
    with pytest.raises(ConfigError, match=r"^LLMMESH_TOY_NAMES: must be JSON"):
        ToySettings.load()


def test_other_services_variables_do_not_matter(monkeypatch):
    monkeypatch.setenv("LLMMESH_OTHER_LIMITS", "7")
    monkeypatch.setenv("LLMMESH_TOYS_LIMITS", "7")
    assert ToySettings.load().limit == 5


def test_settings_do_not_change():
    with pytest.raises(ValidationError):
        ToySettings.load().limit = 6  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("45s", 45), ("10m", 600), ("24h", 86_400), ("14d", 1_209_600), ("250ms", 0.25), (" 1.5 h ", 5400)],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "s", "-5s", "5 weeks", "1e3s", "nan s", "5S"])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)
