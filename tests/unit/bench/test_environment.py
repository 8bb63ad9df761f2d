import json

import pytest

from glinthawk import __version__
from glinthawk.bench.environment import describe_environment


def test_the_environment_tells_what_figures_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("SECRET", "hidden")
    told = json.loads(json.dumps(describe_environment("numpy", "no-such-package")))
    assert told["glinthawk"] == __version__
    assert told["cores"] >= 1
    assert told["cpu"]
    assert list(told["packages"]) == ["numpy"]
    assert told["variables"]["OMP_NUM_THREADS"] == "3"
    assert "SECRET" not in told["variables"]
