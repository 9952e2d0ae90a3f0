"""Findings of a study in sentences: numbers and directions come from the data, with a paired test."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import ml_collections
import numpy as np
import scipy.stats

from resnet_jax.studies.factors import baseline_values, pairs, varied_values
from resnet_jax.studies.study import StudyRun

FEW_SEEDS = 3  # with fewer, a standard deviation says next to nothing
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


class Findings(NamedTuple):
    """Comparisons of cells, in sentences.

    Attributes:
      basis: which cells are compared with which.
      sentences: one for each comparison; none before two cells have finished runs.
      few_seeds: the cells with fewer finished seeds than `FEW_SEEDS`, in words; "" if there are none.
    """

    basis: str
    sentences: list[str]
    few_seeds: str


def find(finished: Mapping[str, list[StudyRun]], experiment: ml_collections.ConfigDict) -> Findings:
    """Compare the cells of a study.

    Args:
      finished: the finished runs by name of cell, in the order of the grid.
      experiment: what the cells vary.
    """
    basis, comparisons = _along_depth(finished)
    in_series = {name for own in series_by_depth(finished).values() for name in own.values()} if comparisons else set()
    if others := finished.keys() - in_series:
        key_basis, found = _along_keys(finished, experiment)
        comparisons += (new := [each for each in found if others & {*each[1:]}])
        basis = f"{basis} {key_basis}".strip() if new else basis
    sentences = []
    for kind, name, other in comparisons:
        errors, others = (errors_by_seed(finished[cell], kind) for cell in (name, other))
        seeds = sorted(errors.keys() & others.keys())
        values = [errors[seed] for seed in seeds], [others[seed] for seed in seeds]
        sentences.append(compare_errors(kind, name, other, *values))
    few = [name for name, runs in finished.items() if len(runs) < FEW_SEEDS]
    return Findings(basis, sentences, "all cells" if few == list(finished) else ", ".join(few))


def _along_depth(finished) -> tuple[str, list[tuple[str, str, str]]]:
    """(basis, (kind of error, cell, other cell) of each comparison) of series with several depths, if there are any."""
    by_depth = series_by_depth(finished)
    compared = [(own[max(own)], own[min(own)]) for own in by_depth.values() if len(own) > 1]
    if not compared:
        return "", []
    (baseline, first), *rest = by_depth.items()
    for _, own in rest:
        if common := own.keys() & first.keys():
            compared.append((own[max(common)], first[max(common)]))
    basis = "In each series the deepest cell is compared with the shallowest"
    if rest:
        basis += f"; other series with {baseline}, the baseline, at the largest depth that both have"
    return f"{basis}.", [(kind, name, other) for name, other in compared for kind in ("training", "test")]


def _along_keys(finished, experiment) -> tuple[str, list[tuple[str, str, str]]]:
    varied = varied_values(finished)
    baseline = baseline_values(varied, experiment)
    found = pairs(varied, baseline)
    basis = f"A cell is compared with those that differ from it in one key; baseline: {_in_words(baseline)}."
    for pair in found:
        if len(pair.keys) > 1:
            basis += f" {pair.name} and {pair.baseline} differ in {' and '.join(pair.keys)}."
    return basis, [("test", pair.name, pair.baseline) for pair in found]


def _in_words(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items())


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
