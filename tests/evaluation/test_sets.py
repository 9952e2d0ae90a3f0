"""Other data sets to evaluate on."""

import pytest

from resnet_jax.errors import UserError
from resnet_jax.evaluation.sets import open_evaluation_set
from tests.data.test_sources import write_folder


def test_another_folder_with_the_same_classes_can_be_evaluated_on(tmp_path):
    root = write_folder(tmp_path, {"other": {"b/1.jpg": 5}, "odd": {"z/1.jpg": 6}})
    source, possible = open_evaluation_set(str(root / "other"), None, ("a", "b"))
    assert source.labels.tolist() == [1] and possible is None
    with pytest.raises(UserError, match="has a class 'z'"):
        open_evaluation_set(str(root / "odd"), None, ("a", "b"))
