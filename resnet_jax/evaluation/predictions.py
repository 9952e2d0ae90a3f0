"""Per-example predictions: their scores, their files, and the comparison of two nets on the same examples."""

import collections
import csv
import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from scipy import stats

from resnet_jax.commands import writing_file
from resnet_jax.errors import UserError
from resnet_jax.training.metrics import per_class_accuracy, scores

_COLUMNS = ("example", "labels", "prediction", "correct", "in_top5", "loss")
_NEW_COLUMNS = ("class", "probability")  # not in the files of earlier versions


@dataclasses.dataclass(frozen=True)
class Predictions:
    """One entry for each example, in the order of the data set.

    Attributes:
      names: names of the examples, which are the same in a copy of the data.
      labels: right classes of each: one, or for ImageNet-ReaL any number.
      predicted: int (n,), the most probable class; -1 for a corrupt image.
      in_top5: bool (n,), True if a right class is among the five most probable.
      losses: float (n,), minus the logarithm of the probability of the right classes.
      classes: name of the predicted class of each; "" for a corrupt image.
      probabilities: float (n,), of the predicted class.
    """

    names: list[str]
    labels: list[tuple[int, ...]]
    predicted: np.ndarray
    in_top5: np.ndarray
    losses: np.ndarray
    classes: list[str]
    probabilities: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """bool (n,): False for an example without a right class, which does not count."""
        return np.array([len(labels) > 0 for labels in self.labels])

    @property
    def correct(self) -> np.ndarray:
        """bool (n,)."""
        return np.array([guess in labels for guess, labels in zip(self.predicted, self.labels, strict=True)])

    def scores(self) -> dict[str, float]:
        """`loss` (nats), `accuracy` and `top5` (fractions) over the examples that count, and their `count`."""
        rows = {"loss": self.losses, "correct": self.correct, "in_top5": self.in_top5}
        return {**scores(rows, self.counts), "count": int(self.counts.sum())}

    def per_class(self, class_names: Sequence[str]) -> dict[str, float]:
        """Accuracy by class name, of examples with one right class."""
        single = np.array([len(labels) == 1 for labels in self.labels])
        labels = np.array([labels[0] for labels in self.labels if len(labels) == 1], int)
        return per_class_accuracy(self.correct[single], labels, class_names)

    def confusion(self, num_classes: int) -> np.ndarray:
        """int (classes, classes): how many examples of each true class (rows) have which predicted class.

        Examples with another number of right classes than one, and corrupt images, are left out.
        """
        counts = np.zeros((num_classes, num_classes), int)
        for pair, count in self._pairs().items():
            counts[pair] = count
        return counts

    def confused(self, count: int) -> list[tuple[int, int, int]]:
        """(true class, predicted class, number of examples) of up to `count` pairs that are confused most often."""
        wrong = [(*pair, number) for pair, number in self._pairs().most_common() if pair[0] != pair[1]]
        return sorted(wrong, key=lambda each: (-each[2], *each[:2]))[:count]

    def _pairs(self) -> collections.Counter:
        """Numbers of examples by (true class, predicted class), of those with one true class."""
        judged = zip(self.labels, np.asarray(self.predicted).tolist(), strict=True)
        return collections.Counter((labels[0], guess) for labels, guess in judged if len(labels) == 1 and guess >= 0)

    @property
    def mistakes(self) -> np.ndarray:
        """bool (n,): True for a wrong prediction of an image that can be decoded."""
        return self.counts & ~self.correct & (np.asarray(self.predicted) >= 0)

    def worst(self, count: int) -> np.ndarray:
        """Indices of up to `count` mistakes, those with the largest loss first."""
        wrong = np.flatnonzero(self.mistakes)
        return wrong[np.argsort(-np.asarray(self.losses)[wrong], kind="stable")][:count]

    def write(self, path: str | pathlib.Path) -> None:
        """Write comma-separated values, one line for each example."""
        judged = zip(self.names, self.labels, self.predicted, self.correct, self.in_top5, self.losses, strict=True)
        text = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}
        with writing_file(path, "--predictions"), open(path, "w", **text) as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS + _NEW_COLUMNS)
            for row, cls, probability in zip(judged, self.classes, self.probabilities, strict=True):
                name, labels, predicted, correct, in_top5, loss = row
                judgement = [int(correct), int(in_top5), f"{loss:.6f}"] if labels else ["", "", ""]
                labels = " ".join(map(str, labels))
                writer.writerow([name, labels, predicted, *judgement, cls, f"{probability:.6f}"])


def read_predictions(path: str | pathlib.Path) -> Predictions:
    """Predictions from a file that `Predictions.write` wrote.

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
            np.array([float(row["loss"] or 0) for row in rows]),
            [row.get("class", "") for row in rows],
            np.array([float(row.get("probability") or "nan") for row in rows]),
        )
    except OSError as error:
        raise UserError(f"{path}: expected a workdir or a file of predictions ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: expected predictions with the columns {', '.join(_COLUMNS)}") from None


def _is_same(one: str, other: str) -> bool:
    """Files of earlier versions have full paths."""
    return one == other or one.endswith(f"/{other}") or other.endswith(f"/{one}")


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
    alike = len(first.names) == len(second.names) and all(map(_is_same, first.names, second.names))
    if not alike or first.labels != second.labels:
        raise UserError(
            f"--compare: expected predictions of the same examples, found {len(first.names)} and {len(second.names)} "
            "that differ in names or labels"
        )
    if not first.counts.any():
        raise UserError("--compare: expected examples with labels, found none")
    only_first = int((first.correct & ~second.correct).sum())
    only_second = int((second.correct & ~first.correct).sum())
    differing = only_first + only_second
    p_value = stats.binomtest(only_first, differing).pvalue if differing else 1.0
    return Comparison(only_first, only_second, float(p_value))
