import json

import pytest

from benchmarks.plots import plot_benchmark
from benchmarks.report import grouped, markdown, read_lines
from resnet_jax.errors import UserError

SURROUNDINGS = {"device": "1 x GPU", "versions": "jax 1", "date": "2030-01-02", "command": "python -m benchmarks.step"}
OURS = {
    **{"benchmark": "step", "case": {"model": "tiny", "size": 8}, "candidate": "ours", "seconds": [2.0, 1.0, 3.0]},
    **{"images_per_second": [1234.5, 800.0, 2000.0], "speed_of_first": [1.0, 1.0, 1.0], "fraction_of_roofline": 0.5},
    **{"compile_seconds": 1.5, **SURROUNDINGS},
}
OTHER = {**OURS, "candidate": "torch", "seconds": [1.0, 1.0, 1.0], "speed_of_first": [0.5, 0.4, 0.6]}


def rows(page):
    return [line for line in page.splitlines() if line.startswith(("| ours", "| torch"))]


def test_a_page_shows_wins_and_losses_with_their_surroundings():
    page = markdown(grouped([OURS, OTHER]))
    ours, other = rows(page)
    assert "| 1,234 [800, 2,000] | 2 [1, 3] | 1 [1, 1] | 50% | compile_seconds 1.5 | 2030-01-02 |" in ours
    assert "0.5 [0.4, 0.6]" in other
    assert "### model tiny, size 8" in page and "On 1 x GPU, with jax 1" in page
    assert page.count("python -m benchmarks.step\n") == 1


def test_the_last_measurement_of_a_candidate_counts():
    newer = {**OURS, "seconds": [9.0, 9.0, 9.0]}
    elsewhere = {**OURS, "device": "1 x TPU"}
    ours, other, on_tpu = rows(markdown(grouped([OURS, OTHER, newer, elsewhere])))
    assert "9 [9, 9]" in ours and "torch" in other and "2 [1, 3]" in on_tpu


def test_a_measurement_without_rounds_is_shown():
    (row,) = rows(markdown(grouped([{**OURS, "seconds": 0.25, "images_per_second": None}])))
    assert row.startswith("| ours |  | 0.25 |")


def test_lines_of_several_files_are_read(tmp_path):
    for name, line in (("a", OURS), ("b", OTHER)):
        (tmp_path / name).write_text(json.dumps(line) + "\n")
    assert read_lines([tmp_path / "a", tmp_path / "b"]) == [OURS, OTHER]


@pytest.mark.parametrize("text", ["{", "[1]", '{"benchmark": "step"}', json.dumps({**OURS, "case": "tiny"})])
def test_a_line_that_is_no_measurement_is_refused(tmp_path, text):
    (tmp_path / "a").write_text(json.dumps(OURS) + "\n" + text)
    with pytest.raises(UserError, match="line 2 of .*missing"):
        read_lines([tmp_path / "a"])


def test_no_measurements_are_refused(tmp_path):
    with pytest.raises(UserError, match="--save"):
        read_lines([])
    with pytest.raises(UserError, match="cannot be read"):
        read_lines([tmp_path / "nothing"])


def test_every_benchmark_has_a_picture(tmp_path):
    plot_benchmark({"a": [OURS, OTHER], "b": [OURS]}, tmp_path / "bars.png", "step")
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
