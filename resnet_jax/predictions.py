"""What a net said of each example of a data set, its scores, and the comparison of two nets on the same examples."""

import csv
import dataclasses
import pathlib

import numpy as np
from scipy import special, stats

from resnet_jax.errors import UserError

_COLUMNS = ("example", "labels", "prediction", "correct", "in_top5", "loss")


@dataclasses.dataclass(frozen=True)
class Predictions:
    """One entry for each example, in the order of the data set.

    Attributes:
      names: of the examples.
      labels: the right classes of each: one, or for ImageNet-ReaL any number.
      predicted: int (n,), the most probable class; -1 for an image that could not be decoded.
      in_top5: bool (n,), is a right class among the five most probable?
      losses: float (n,), minus the logarithm of the probability of the right classes.
    """

    names: list[str]
    labels: list[tuple[int, ...]]
    predicted: np.ndarray
    in_top5: np.ndarray
    losses: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """bool (n,): does the example count? One without a right class does not."""
        return np.array([len(labels) > 0 for labels in self.labels])

    @property
    def correct(self) -> np.ndarray:
        """bool (n,)."""
        return np.array([guess in labels for guess, labels in zip(self.predicted, self.labels, strict=True)])

    def scores(self) -> dict[str, float]:
        """`loss` (nats), `accuracy` and `top5` (fractions) over the examples that count, and their `count`."""
        counts = self.counts
        return {
            "loss": float(self.losses[counts].mean()),
            "accuracy": float(self.correct[counts].mean()),
            "top5": float(self.in_top5[counts].mean()),
            "count": int(counts.sum()),
        }

    def write(self, path: str | pathlib.Path) -> None:
        """As comma-separated values, one line for each example."""
        rows = zip(self.names, self.labels, self.predicted, self.correct, self.in_top5, self.losses, strict=True)
        try:
            with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
                writer = csv.writer(file)
                writer.writerow(_COLUMNS)
                for name, labels, predicted, correct, in_top5, loss in rows:
                    labels = " ".join(map(str, labels))
                    writer.writerow([name, labels, predicted, int(correct), int(in_top5), f"{loss:.6f}"])
        except OSError as error:
            raise UserError(f"--predictions: {path} cannot be written: {error.strerror}") from None


def read_predictions(path: str | pathlib.Path) -> Predictions:
    """What `Predictions.write` wrote.

    Raises:
      UserError: no such file, or of another kind.
    """
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = list(csv.DictReader(file))
        return Predictions(
            [row["example"] for row in rows],
            [tuple(map(int, row["labels"].split())) for row in rows],
            np.array([int(row["prediction"]) for row in rows]),
            np.array([row["in_top5"] == "1" for row in rows]),
            np.array([float(row["loss"]) for row in rows]),
        )
    except OSError as error:
        raise UserError(f"{path}: expected a workdir or a file of predictions ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: expected predictions with the columns {', '.join(_COLUMNS)}") from None


def judge(log_probabilities: np.ndarray, labels: tuple[int, ...]) -> tuple[int, bool, float]:
    """(most probable class, is a right one among the first five, loss) of one example.

    Args:
      log_probabilities: float (classes,). One that is not a number is never right.
      labels: the right classes.
    """
    if np.isnan(log_probabilities).any():
        return -1, False, float("nan")
    first = np.argsort(-log_probabilities, kind="stable")[:5]
    loss = -special.logsumexp(log_probabilities[list(labels)]) if labels else 0.0
    return int(first[0]), bool(np.isin(first, labels).any()), float(loss)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two nets on the same examples.

    Attributes:
      only_first, only_second: examples that one of them alone gets right.
      p_value: two-sided, of McNemar's exact test (McNemar 1947): how probable is a split at least as uneven, if both
        are as good?
    """

    only_first: int
    only_second: int
    p_value: float


def compare(first: Predictions, second: Predictions) -> Comparison:
    """McNemar's exact test.

    Raises:
      UserError: predictions of other examples.
    """
    if first.names != second.names or first.labels != second.labels:
        raise UserError(
            f"--compare: expected predictions of the same examples, found {len(first.names)} and {len(second.names)} "
            "that differ in names or labels"
        )
    only_first = int((first.correct & ~second.correct).sum())
    only_second = int((second.correct & ~first.correct).sum())
    differing = only_first + only_second
    p_value = stats.binomtest(only_first, differing).pvalue if differing else 1.0
    return Comparison(only_first, only_second, float(p_value))
