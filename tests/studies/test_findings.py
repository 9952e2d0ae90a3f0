import math

from resnet_jax.studies.findings import compare_errors
from tests.studies.folders import p_of_three


def test_a_difference_is_stated_with_its_direction_interval_and_p():
    # Differences 10, 8, 9: mean 9, standard deviation 1; the t quantile 0.975 at 2 degrees is .95 / sqrt(2 .975 .025).
    half = 0.95 / math.sqrt(2 * 0.975 * 0.025) / math.sqrt(3)
    assert f"{p_of_three([10, 8, 9]):.2g}" == "0.0041"
    rest = (
        f"(95% confidence interval {9 - half:.2f} to {9 + half:.2f}; {{}} in 3 of 3 seeds; paired t-test over 3 seeds"
    )
    higher = compare_errors("training", "plain56", "plain20", [11, 10, 12], [1, 2, 3])
    expected = f"plain56's training error is higher than plain20's by 9.00 points {rest.format('higher')}, p = 0.0041)."
    assert higher == expected
    lower = compare_errors("test", "plain20", "plain56", [1, 2, 3], [11, 10, 12])
    expected = f"plain20's test error is lower than plain56's by 9.00 points {rest.format('lower')}, p = 0.0041)."
    assert lower == expected


def test_without_significance_no_difference_is_claimed_and_no_equality():
    sentence = compare_errors("test", "a", "b", [3.0, 1.0, 2.5], [1.0, 2.0, 1.5])
    assert sentence.startswith("The data do not show a difference between the test errors of a and b")
    assert "a's minus b's: 0.67 points" in sentence
    assert "higher in 2 of 3 seeds" in sentence
    assert f"p = {p_of_three([2, -1, 1]):.2g})" in sentence
    assert "same" not in sentence


def test_where_no_test_is_possible_the_sentence_says_so():
    one = compare_errors("test", "a", "b", [5.0], [7.5])
    assert (
        one
        == "a's test error is lower than b's by 2.50 points in the one seed that both have finished; one seed "
        + ("allows no test.")
    )
    rounded = compare_errors("test", "a", "b", [10.3, 11.3, 0.8], [5.3, 6.3, -4.2])  # 5, but for rounding
    assert "higher than b's by 5.00 points in each of 3 seeds; differences that do not vary allow no test" in rounded
    assert "p " not in rounded
    assert "a's test error equals b's in each of 2 seeds" in compare_errors("test", "a", "b", [1, 2], [1, 2])
    assert "no seed in common" in compare_errors("test", "a", "b", [], [])
