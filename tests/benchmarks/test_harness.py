import json
import sys

import pytest

from benchmarks.harness import benchmark, command_parser, compare, print_line


def scripted(name, seconds, calls):
    """A candidate that notes its calls and says how long they took; the first is no timing."""
    left = iter([1e9, *seconds])

    def candidate():
        calls.append(name)
        return next(left)

    return candidate


def test_candidates_take_turns_and_ratios_are_those_of_the_rounds(capsys):
    calls = []
    candidates = {"ours": scripted("ours", (1.0, 2.0, 4.0), calls), "other": scripted("other", (3.0, 8.0, 4.0), calls)}
    ours, other = compare(candidates, 3, case={"size": 8}, images=12, fastest_seconds=0.5, about={"other": {"mb": 7}})
    assert calls == ["ours", "other"] * 4
    assert ours["seconds"] == [2.0, 1.0, 4.0] and other["seconds"] == [4.0, 3.0, 8.0]
    assert ours["images_per_second"] == [6.0, 3.0, 12.0]
    assert other["speed_of_first"] == [3.0, 1.0, 4.0]  # 3/1, 8/2, 4/4: not a ratio of medians
    assert ours["fraction_of_roofline"] == 0.25 and other["fraction_of_roofline"] == 0.125
    assert other["mb"] == 7 and "mb" not in ours and ours["case"] == {"size": 8}
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == [ours, other] and {"device", "versions", "date", "command"} <= printed[0].keys()


def test_a_function_that_returns_nothing_is_timed():
    (line,) = compare({"ours": lambda: None}, 2)
    assert 0 < line["seconds"][0] < 1 and "speed_of_first" not in line


def test_lines_are_appended_to_the_file_of_save(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.harness._FILES", [])
    file = tmp_path / "results" / "cpu.jsonl"
    assert command_parser("", rounds=3).parse_args(["--save", str(file)]).rounds == 3
    first = print_line({"case": {}, "candidate": "a"})
    second = print_line({"case": {}, "candidate": "b", "device": "4 x TPU"})
    assert [json.loads(line) for line in file.read_text().splitlines()] == [first, second]
    assert second["device"] == "4 x TPU" != first["device"]


@pytest.mark.parametrize("rounds", ["0", "x"])
def test_rounds_that_are_no_count_are_refused(rounds, capsys):
    with pytest.raises(SystemExit):
        command_parser("").parse_args(["--rounds", rounds])
    assert f"--rounds: expected a whole number above 0, found {rounds}" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        command_parser("").parse_args(["--save", str(tmp_path / "file" / "cpu.jsonl")])
    assert "cpu.jsonl cannot be written" in capsys.readouterr().err


def test_a_package_that_is_missing_is_named(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # `command_line` replaces both
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    monkeypatch.setattr("warnings.formatwarning", None)
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "")
    with pytest.raises(SystemExit), benchmark():
        import no_such_package.inside  # noqa: F401
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected the package no_such_package, found none" in line
