import errno
import io
import json
from collections.abc import Iterator

import pytest
import structlog

from glinthawk.errors import InvalidConfig
from glinthawk.telemetry.logging import configure_logging, get_logger


@pytest.fixture(autouse=True)
def _restored_configuration() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def test_a_json_line_has_event_fields_and_identity() -> None:
    stream = io.StringIO()
    log = get_logger("stage.loop")
    configure_logging("info", "json", role="stage", name="stage-0", stream=stream)
    log.info("step_failed", lane=3)
    line = json.loads(stream.getvalue())
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "step_failed",
        "component": "stage.loop",
        "lane": 3,
        "level": "info",
        "role": "stage",
        "process": "stage-0",
    }


def fail(prompt: str) -> None:
    raise ValueError(f"cannot read {prompt}")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_of_an_exception_type_and_place_are_logged_and_no_prompt(log_format: str) -> None:
    stream = io.StringIO()
    configure_logging("info", log_format, role="stage", name="s", stream=stream)
    with pytest.raises(ValueError, match="cannot read") as caught:
        fail("a secret prompt")
    get_logger("x").error("failed", exc_info=caught.value)
    assert len(stream.getvalue().splitlines()) == 1
    assert "ValueError" in stream.getvalue()
    assert "test_logging.py" in stream.getvalue()
    assert "secret prompt" not in stream.getvalue()


def test_lines_below_the_level_are_not_written() -> None:
    stream = io.StringIO()
    configure_logging("warning", "console", role="gateway", name="g", stream=stream)
    get_logger("x").info("quiet")
    get_logger("x").warning("loud", reason="why")
    assert "quiet" not in stream.getvalue()
    assert "loud" in stream.getvalue()
    assert "reason=why" in stream.getvalue()


def test_logs_go_to_stderr_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json", role="gateway", name="g")
    get_logger("x").info("here")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["event"] == "here"


class FullDisk(io.StringIO):
    """A stream that fails until there is room."""

    has_room = False

    def write(self, text: str) -> int:
        if not self.has_room:
            raise OSError(errno.ENOSPC, "no space left on device")
        return super().write(text)


def test_a_line_that_cannot_be_written_fails_nobody_and_later_ones_come() -> None:
    stream = FullDisk()
    configure_logging("info", "json", role="gateway", name="g", stream=stream)
    get_logger("x").error("lost")
    stream.has_room = True
    get_logger("x").error("kept")
    assert [json.loads(line)["event"] for line in stream.getvalue().split("\n") if line] == ["kept"]
    stream.close()
    get_logger("x").error("closed")


@pytest.mark.parametrize(("level", "log_format"), [("loud", "json"), ("info", "xml")])
def test_unknown_settings_are_refused_by_name(level: str, log_format: str) -> None:
    with pytest.raises(InvalidConfig, match=r"loud|xml"):
        configure_logging(level, log_format, role="r", name="n")
