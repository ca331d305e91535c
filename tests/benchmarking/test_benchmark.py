import json

import pytest

from benchmarking.fabricate import LARGE, SMALL, benchmark, measurement
from bnkit.benchmarking import Case, bench
from bnkit.benchmarking import benchmark as module


def test_the_bandwidth_is_that_of_the_largest_copy_read_and_written():
    found = benchmark(measurement(SMALL, copy=1e-9), measurement(LARGE, copy=0.5))
    assert found.bandwidth == 2 * Case(LARGE).bytes / 0.5


def test_means_are_geometric_and_skip_what_was_not_measured():
    found = benchmark(measurement(LARGE, torch=2.0), measurement(SMALL, torch=8.0))
    assert found.mean_ratio("torch") == pytest.approx(4)
    assert found.mean_ratio("torch", least=10**6) == pytest.approx(2)
    assert found.mean_ratio("torch.compile") is None
    one = benchmark(measurement(LARGE, **{"torch.compile": 3.0}), measurement(SMALL))
    assert one.mean_ratio("torch.compile") == pytest.approx(3)


def test_noise_is_the_largest_ratio_of_a_program_to_itself_either_way():
    faster = measurement(SMALL, torch=4.0, torch_again=2.0)
    assert benchmark(faster, measurement(LARGE)).noise == 2.0
    same = measurement(SMALL, torch=4.0, torch_again=4.0)
    assert benchmark(same).noise == 1.0


def test_the_summary_holds_what_the_benchmark_is_asked_for():
    summary = benchmark(measurement(LARGE), measurement(SMALL, torch=1.0)).summary()
    assert summary["torch / bnkit"] == pytest.approx(2)
    assert summary["torch / bnkit, least"] == 1
    assert summary["torch / itself, most"] == 5
    assert summary["torch / bnkit with fresh memory"] == pytest.approx(1)
    assert summary["inference: torch / bnkit"] == pytest.approx(3)
    assert summary["torch.compile / bnkit"] is None
    assert summary["passes / minimum, large"] == pytest.approx(4 / 8)


def test_without_large_cases_there_is_no_figure_of_them():
    summary = benchmark(measurement(SMALL)).summary()
    assert summary["passes / minimum, large"] is None
    assert summary["inference: torch / bnkit, large"] is None


def test_it_prints_a_row_for_each_case_and_the_summary():
    text = str(benchmark(measurement(LARGE), measurement(SMALL, last=True)))
    headers, _, first, second, *_ = text.splitlines()
    assert headers.split("   ")[0].strip() == "mini-batch"
    assert first.split()[:3] == ["32x64x112x112,", "channels", "first"]
    assert second.split()[:3] == ["60x100,", "channels", "last"]
    assert "4.00" in first
    assert "torch / bnkit: 4" in text


def test_the_column_of_torch_compile_is_there_only_if_it_was_measured():
    assert "than compiled" not in str(benchmark())
    some = benchmark(measurement(LARGE, **{"torch.compile": 3.0}), measurement(SMALL))
    assert "than compiled" in str(some)


def test_it_is_plain_data_in_milliseconds():
    document = json.loads(json.dumps(benchmark(measurement(LARGE, last=True)).to_json()))
    (case,) = document["cases"]
    assert case["shape"] == list(LARGE)
    assert case["layout"] == "channels last"
    assert case["milliseconds"]["torch"] == 4000
    assert case["passes"] == 4
    assert document["threads"] == 2


def test_all_cases_are_measured_in_order_and_counted():
    seen = []

    def progress(cases):
        for case in cases:
            seen.append(case)
            yield case

    cases = [Case((6, 4)), Case((3, 4, 5))]
    found = bench(iter(cases), seconds=0.0, progress=progress)
    assert [m.case for m in found.measurements] == cases == seen


def test_without_cases_there_is_nothing_to_measure():
    with pytest.raises(ValueError, match=r"^`cases` is empty: pass at least one$"):
        bench([])


def test_a_missing_compiler_is_found_before_anything_is_measured(monkeypatch):
    def missing():
        raise ValueError("no compiler")

    monkeypatch.setattr(module, "refuse_without_compiler", missing)
    monkeypatch.setattr(module, "measure", lambda *_, **__: pytest.fail("it was measured"))
    with pytest.raises(ValueError, match="no compiler"):
        bench([Case((6, 4))], compiled=True)
