"""Settings: from the environment and arguments, with messages that name what is wrong."""

import pytest

from glinthawk_operator.errors import InvalidSettings
from glinthawk_operator.settings import Settings, describe_settings, load_settings


def test_arguments_win_over_the_environment() -> None:
    environment = {"GLINTHAWK_OPERATOR_WORKERS": "2", "GLINTHAWK_OPERATOR_POLL_SECONDS": "3"}
    settings = load_settings(environment, ["--workers", "5", "--log-level=debug"])
    assert (settings.workers, settings.poll_seconds, settings.log_level) == (5, 3.0, "debug")


def test_namespaces_come_by_commas() -> None:
    settings = load_settings({"GLINTHAWK_OPERATOR_NAMESPACES": "a, b,"}, [])
    assert settings.namespaces == ("a", "b")
    assert load_settings({"GLINTHAWK_OPERATOR_NAMESPACES": ""}, []).namespaces == ()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--workers", "0"], "workers"),
        (["--nonsense", "1"], "nonsense"),
        (["stray"], "stray"),
        (["--workers"], "workers"),
    ],
)
def test_what_is_wrong_is_named(arguments: list[str], text: str) -> None:
    with pytest.raises(InvalidSettings, match=text):
        load_settings({}, arguments)


def test_help_names_every_setting() -> None:
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in describe_settings()
