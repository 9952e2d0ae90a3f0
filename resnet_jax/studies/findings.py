"""Findings of a study in sentences: numbers and directions come from the data, with a paired test."""

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

from resnet_jax.studies.study import StudyRun

_EQUAL = 1e-9  # percentage points: below the rounding of float64


def compare_errors(kind: str, name: str, other: str, errors: Sequence[float], others: Sequence[float]) -> str:
    """A sentence on the difference of two cells, by a paired t-test over seeds.

    >>> compare_errors("training", "plain56", "plain20", [82.0, 79.0, 82.0], [1.0, 0.0, 2.0])
    "plain56's training error is higher than plain20's by 80.00 points (95% confidence interval 77.52 to 82.48; ..."

    Args:
      kind: "training" or "test".
      name, other: cells' names.
      errors, others: percent, (seeds,), of the same seeds in the same order.
    """
    differences = np.subtract(errors, others)
    n = len(differences)
    if n == 0:
        return f"{name} and {other} have finished no seed in common: their {kind} errors cannot be compared yet."
    mean = differences.mean()
    word = "higher" if mean > 0 else "lower"
    if np.ptp(differences) < _EQUAL:
        seeds = f"each of {n} seeds; differences that do not vary allow no test"
        if n == 1:
            seeds = "the one seed that both have finished; one seed allows no test"
        if abs(mean) < _EQUAL:
            return f"{name}'s {kind} error equals {other}'s in {seeds}."
        return f"{name}'s {kind} error is {word} than {other}'s by {abs(mean):.2f} points in {seeds}."
    test = scipy.stats.ttest_rel(errors, others)
    low, high = test.confidence_interval(0.95)
    p = f"p = {test.pvalue:.2g}" if test.pvalue >= 0.0001 else "p < 0.0001"
    evidence = f"{word} in {sum(differences * mean > 0)} of {n} seeds; paired t-test over {n} seeds, {p}"
    if test.pvalue >= 0.05:
        return (
            f"The data do not show a difference between the {kind} errors of {name} and {other} ({name}'s minus "
            f"{other}'s: {mean:.2f} points, 95% confidence interval {low:.2f} to {high:.2f}; {evidence})."
        )
    low, high = sorted((abs(low), abs(high)))  # of one sign, since p < 0.05
    return (
        f"{name}'s {kind} error is {word} than {other}'s by {abs(mean):.2f} points (95% confidence interval {low:.2f} "
        f"to {high:.2f}; {evidence})."
    )


def findings(finished: Mapping[str, list[StudyRun]]) -> list[str]:
    """Sentences that compare the cells of a study; none before two cells have finished runs.

    Args:
      finished: the finished runs by name of cell, in the order of the grid.
    """
    sentences = []
    for kind, name, other in _comparisons(finished):
        errors, others = (errors_by_seed(finished[cell], kind) for cell in (name, other))
        seeds = sorted(errors.keys() & others.keys())
        values = [errors[seed] for seed in seeds], [others[seed] for seed in seeds]
        sentences.append(compare_errors(kind, name, other, *values))
    return sentences


def _comparisons(finished: Mapping[str, list[StudyRun]]) -> list[tuple[str, str, str]]:
    """(kind of error, cell, other cell): the deepest of a series against its shallowest, and series at one depth."""
    by_depth = series_by_depth(finished)
    pairs = [(own[max(own)], own[min(own)]) for own in by_depth.values() if len(own) > 1]
    if not pairs:
        first, *rest = list(finished) or [None]
        return [("test", name, first) for name in rest]
    first, *rest = by_depth.values()
    for own in rest:
        if common := own.keys() & first.keys():
            pairs.append((own[max(common)], first[max(common)]))
    return [(kind, name, other) for name, other in pairs for kind in ("training", "test")]


def series_by_depth(finished: Mapping[str, list[StudyRun]]) -> dict[str, dict[int, str]]:
    """Names of cells by series and depth; of two with the same, the first."""
    by_depth = {}
    for name, (run, *_) in finished.items():
        if run.cell["series"]:
            by_depth.setdefault(run.cell["series"], {}).setdefault(run.result["depth"], name)
    return by_depth


def errors_by_seed(runs: Sequence[StudyRun], kind: str) -> dict[int, float]:
    """Percent by seed: "training" or "test" error of the last weights, or test error of the "best"."""
    weights, split = {"training": ("last", "train"), "test": ("last", "test"), "best": ("best", "test")}[kind]
    return {run.seed: 100 * (1 - run.result[weights][split]["accuracy"]) for run in runs}
