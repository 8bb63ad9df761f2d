"""The gateway, or everything, dies again and again under a batch; the batch ends as if it had not.

Deaths come at moments drawn from a seed: some meet a gateway that is still opening its store,
some one in the middle of its work.
"""

import time
from pathlib import Path
from random import Random
from typing import Any

import pytest

from factories_models import make_tiny_model
from glinthawk.bench.chaos import measure_kv_left
from glinthawk.bench.client import Patient
from glinthawk.bench.fleet import GATEWAY, FleetSettings, fleet_of, wait_until
from glinthawk.bench.tally import Answer, Tally, compare, read_answers
from killed_runs import START_S, create_batch, make_lines, read_batch, up

NUM_REQUESTS = 300
NUM_TOKENS = 32
"""At most, for each request."""

OPTIONS = ("--stages", "2", "--attention-workers", "2", "--kv-memory", "2MiB")
LONGEST_START_S = 4.0
LONGEST_WORK_S = 1.0

DEATHS = pytest.mark.parametrize("num_deaths", [3, pytest.param(20, marks=pytest.mark.acceptance)])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama3", tmp_path_factory.mktemp("model") / "llama3")


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    with up(model, tmp_path_factory.mktemp("undisturbed"), *OPTIONS) as command:
        command.start()
        lines = make_lines(model, NUM_REQUESTS, NUM_TOKENS)
        results = read_batch(command.patient, create_batch(command.patient, lines, "undisturbed"))
        assert command.stop()
        command.wait_until_nothing_is_left()
    answers = read_answers(results)
    assert len(answers) == NUM_REQUESTS
    return answers


def live(random: Random, patient: Patient) -> None:
    """Let a life last: half of them end while they start, the others at work."""
    if random.random() < 0.5:
        time.sleep(random.uniform(0.0, LONGEST_START_S))
    else:
        wait_until(patient.client.is_ready, "ready", START_S)
        time.sleep(random.uniform(0.0, LONGEST_WORK_S))


def check(
    results: list[dict[str, Any]], lines: list[dict[str, Any]], undisturbed: dict[str, Answer]
) -> None:
    assert len(results) == len(lines)
    assert compare(results, [line["custom_id"] for line in lines], undisturbed) == Tally()


@DEATHS
def test_a_batch_outlives_all_of_up(
    model: Path, tmp_path: Path, undisturbed: dict[str, Answer], num_deaths: int
) -> None:
    random = Random(num_deaths)
    lines = make_lines(model, NUM_REQUESTS, NUM_TOKENS)
    with up(model, tmp_path, *OPTIONS) as command:
        command.start()
        batch_id = create_batch(command.patient, lines, "killed")
        for _ in range(num_deaths):
            live(random, command.patient)
            command.kill()
            command.start()
        check(read_batch(command.patient, batch_id), lines, undisturbed)
        assert command.stop()
        command.wait_until_nothing_is_left()


@DEATHS
def test_stages_and_workers_outlive_the_gateway_and_are_found_again(
    model: Path, tmp_path: Path, undisturbed: dict[str, Answer], num_deaths: int
) -> None:
    random = Random(num_deaths)
    lines = make_lines(model, NUM_REQUESTS, NUM_TOKENS)
    with fleet_of(FleetSettings(str(model), tmp_path, 2, 2, "2MiB")) as fleet:
        patient = Patient(fleet.api, START_S)
        batch_id = create_batch(patient, lines, "killed")
        for _ in range(num_deaths):
            live(random, patient)
            fleet.life(GATEWAY).kill()
            fleet.remove(GATEWAY)
            fleet.begin_gateway()
        check(read_batch(patient, batch_id), lines, undisturbed)
        fleet.revive()
        assert fleet.ended == [], "stages and workers live on"
        assert measure_kv_left(fleet) == 0
    assert fleet.hung == []
