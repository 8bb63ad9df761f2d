import json

from glinthawk.bench.transport import KIB, TransportBenchSettings, run_transport_bench


def test_a_result_has_samples_with_their_baseline_and_goals() -> None:
    settings = TransportBenchSettings((KIB, 256 * KIB), 2, 1 << 20, 4)
    result = json.loads(json.dumps(run_transport_bench(settings)))
    assert set(result) == {"benchmark", "environment", "settings", "samples", "goals"}
    shapes = {(sample["mode"], sample["bytes"]) for sample in result["samples"]}
    assert shapes == {(mode, size) for mode in ("echo", "one_way") for size in (KIB, 256 * KIB)}
    for sample in result["samples"]:
        assert sample["raw"]["over_raw"] == 1.0
        for way in ("raw", "tcp", "grpc"):
            assert sample[way]["bytes_per_second"] > 0
            assert sample[way]["seconds_p95"] >= sample[way]["seconds_median"] > 0
    assert [goal["name"] for goal in result["goals"]] == [
        "frames / raw sockets, echo, 256 KiB",
        "frames / raw sockets, one_way, 256 KiB",
    ]
    for goal in result["goals"]:
        assert goal["holds"] == (goal["value"] >= goal["goal"] == 0.8)


def test_a_sample_moves_what_was_asked_within_its_bounds() -> None:
    settings = TransportBenchSettings(bytes_per_sample=1 << 20, max_messages=100)
    assert settings.num_messages(KIB) == 100
    assert settings.num_messages(64 * KIB) == 16
    assert settings.num_messages(4096 * KIB) == 2
