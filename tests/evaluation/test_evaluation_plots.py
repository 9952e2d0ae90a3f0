"""The confusion matrix and the worst mistakes at the end of an evaluation."""

import matplotlib.figure
import numpy as np
import pytest

from resnet_jax import evaluate, train
from resnet_jax.data.sources import ArrayDataset
from resnet_jax.evaluation import plots
from resnet_jax.evaluation.predictions import Predictions
from tests.tiny import tiny_config

NAMES = ("cat", "$x^$ [dog]", "a name that is much too long for a title")


@pytest.fixture
def drawn(monkeypatch):
    figures = []
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda figure, target: figures.append(figure))
    return figures


def make_predictions(labels, predicted, losses):
    classes = [NAMES[guess] if guess >= 0 else "" for guess in predicted]
    none = np.zeros(len(labels))
    return Predictions([str(i) for i in range(len(labels))], labels, np.array(predicted), none, losses, classes, none)


def test_the_confusion_matrix_counts_true_against_predicted_classes(drawn, tmp_path):
    labels = [(0,), (0,), (0,), (1,), (2,), (), (0, 1), (2,)]
    predicted = [0, 1, 1, 1, 0, 0, 2, -1]
    predictions = make_predictions(labels, predicted, np.arange(8.0))
    assert predictions.confused(2) == [(0, 1, 2), (2, 0, 1)]
    expected = np.zeros((3, 3), int)
    for one, guess in zip(labels, predicted, strict=True):
        if len(one) == 1 and guess >= 0:
            expected[one[0]][guess] += 1
    assert predictions.confusion(3).tolist() == expected.tolist() == [[1, 2, 0], [0, 1, 0], [1, 0, 0]]
    plots.plot_confusion(predictions, NAMES, tmp_path / "x.png")
    axes = drawn[0].axes[0]
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        ((0, 0), "1"), ((1, 0), "2"), ((1, 1), "1"), ((0, 2), "1"),
    }  # fmt: skip
    np.testing.assert_allclose(axes.images[0].get_array(), [[1 / 3, 2 / 3, 0], [0, 1, 0], [1, 0, 0]])
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["cat", "$x^$ [dog]"]


def test_the_sheet_shows_the_mistakes_with_the_largest_loss_first(drawn, tmp_path):
    labels, predicted, losses = [(0,), (1,), (1,), (0, 2), (2,)], [0, 0, 2, 1, -1], np.array([9.0, 1.0, 3.0, 2.0, 8.0])
    predictions = make_predictions(labels, predicted, losses)
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
    source = ArrayDataset(images, np.zeros(5, np.int32), NAMES)
    plots.plot_mistakes(predictions, source, NAMES, tmp_path / "x.png")
    shown = [axes for axes in drawn[0].axes if axes.images]
    assert [int(axes.images[0].get_array()[0, 0]) for axes in shown] == [2, 3, 1]
    assert [axes.get_title() for axes in shown] == [
        "$x^$ [dog]\na name that is much t… (0%)",
        "cat or a name that is… (0%)".replace(" (0%)", "\n$x^$ [dog] (0%)"),
        "$x^$ [dog]\ncat (0%)",
    ]


def test_the_command_names_what_is_confused_and_draws_it_into_the_run(tmp_path, capsys):
    run = tmp_path / "run"
    train(tiny_config(train__steps=4), run)
    capsys.readouterr()
    evaluate.main([str(run), "--step=latest"])
    printed = capsys.readouterr().out
    wrong = evaluate.predict(run, step="latest").confusion(10)
    np.fill_diagonal(wrong, 0)
    true, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
    assert f"most confused: {true} as {predicted} ({wrong.max()})" in printed
    found = {path.name: path.read_bytes() for path in (run / "evaluation" / "test-latest").iterdir()}
    assert found.keys() == {"confusion.png", "mistakes.png"}
    assert all(content.startswith(b"\x89PNG") for content in found.values())
    evaluate.main([str(run), "--step=latest", "--flip"])
    assert {path.name for path in (run / "evaluation").iterdir()} == {"test-latest", "test-latest-flip"}
    step = next(run.glob("checkpoints/*"))
    before = sorted(step.rglob("*"))
    evaluate.main([str(step)])
    assert sorted(step.rglob("*")) == before  # a step is what was saved


def test_names_that_are_no_text_are_drawn_and_without_mistakes_there_is_no_sheet(tmp_path):
    names = [b"caf\xe9".decode("utf-8", "surrogateescape"), "_hidden", "\u732b"]
    images = ArrayDataset(np.zeros((3, 4, 4, 1), np.uint8), np.zeros(3, np.int32), tuple(names))
    for predicted, files in (([1, 1, 2], ["confusion.png", "mistakes.png"]), ([0, 1, 2], ["confusion.png"])):
        predictions = make_predictions([(0,), (1,), (2,)], predicted, np.ones(3))
        drawn = plots.plot_evaluation(predictions, images, names, tmp_path)
        assert [path.name for path in drawn] == files


@pytest.mark.parametrize(("classes", "shown"), [(5, False), (6, True)])
def test_top5_is_shown_for_more_than_five_classes_alone(classes, shown, tmp_path, capsys):
    settings = {"data__name": f"synthetic:60:{classes}", "data__loader": "stream", "data__image_size": 16}
    train(tiny_config(**settings, data__validation_size=0, train__steps=2, train__batch_size=16), tmp_path / "run")
    screen = capsys.readouterr().out
    assert ("top-5" in screen) == shown and "best" not in screen.split("Results")[1].split("└")[0]
    evaluate.main([str(tmp_path / "run")])
    assert ("top-5" in capsys.readouterr().out) == shown


def test_a_run_that_cannot_be_written_is_scored_all_the_same(tmp_path, capsys):
    run = tmp_path / "run"
    train(tiny_config(train__steps=2), run)
    (run / "evaluation").write_text("a file where a folder should be")
    evaluate.main([str(run), "--step=latest"])
    printed = capsys.readouterr().out
    assert "accuracy" in printed and "pictures: they cannot be written to" in printed
