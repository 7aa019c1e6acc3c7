import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, jaccard_score

from evaluation.metrics import class_rows, confusion_counts, iou, summary
from storage.schemas import table_of

Labels = NDArray[np.uint8]

# True labels 0 0 1 1 2, predicted 0 1 1 1 0; label 3 occurs nowhere.
TRUTH = np.array([[0, 0, 1], [1, 2, 255]], np.uint8)
LABEL = np.array([[0, 1, 1], [1, 0, 3]], np.uint8)
BY_HAND = [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]

shapes = hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)
truths = shapes.flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 3, 4, 255])),
        hnp.arrays(np.uint8, shape, elements=st.integers(0, 4)),
    )
)


def test_confusion_counts_small_case_equals_the_count_by_hand() -> None:
    counts_CC = confusion_counts(TRUTH, LABEL, 4)
    assert counts_CC.dtype == np.int64
    np.testing.assert_array_equal(counts_CC, BY_HAND)


def test_iou_small_case_equals_the_quotients_by_hand() -> None:
    np.testing.assert_allclose(iou(np.array(BY_HAND)), [1 / 3, 2 / 3, 0, np.nan])


def test_summary_small_case_averages_defined_and_present_labels() -> None:
    assert summary(np.array(BY_HAND)) == {
        "miou": pytest.approx(1 / 3),
        "miou_present": pytest.approx(1 / 3),
        "pixel_accuracy": pytest.approx(3 / 5),
        "labels": 4,
        "labels_present": 3,
    }


def test_summary_label_only_predicted_counts_as_zero_but_is_not_present() -> None:
    scores = summary(np.array([[3, 1], [0, 0]]))
    assert scores["miou"] == pytest.approx(0.375)
    assert scores["miou_present"] == pytest.approx(0.75)


def test_summary_perfect_labels_score_one() -> None:
    scores = summary(confusion_counts(TRUTH, np.where(TRUTH == 255, 0, TRUTH), 4))
    assert (scores["miou"], scores["miou_present"], scores["pixel_accuracy"]) == (1, 1, 1)


def test_summary_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no pixel was counted"):
        summary(confusion_counts(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8), 3))


def test_confusion_counts_ignored_pixels_may_be_labelled_anything() -> None:
    other = np.where(TRUTH == 255, 200, LABEL).astype(np.uint8)
    np.testing.assert_array_equal(confusion_counts(TRUTH, other, 4), BY_HAND)


@pytest.mark.parametrize(
    ("truth", "label", "message"),
    [
        (TRUTH, LABEL[:1], "predict at the mask's size"),
        (TRUTH, LABEL + 3, "predicted labels 3 to 4; allowed are 0 to 2"),
        (np.where(TRUTH == 2, 9, TRUTH), LABEL, "true labels 0 to 9.*class list"),
    ],
)
def test_confusion_counts_wrong_size_or_label_is_refused(truth: Labels, label: Labels, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        confusion_counts(truth, label, 3)


@settings(deadline=None)
@given(st.lists(truths, min_size=1, max_size=3))
def test_counts_summed_over_images_equal_scikit_learn(pairs: list[tuple[Labels, Labels]]) -> None:
    counts_CC = sum(confusion_counts(truth, label, 5) for truth, label in pairs)
    truth_N = np.concatenate([truth.ravel() for truth, _ in pairs])
    label_N = np.concatenate([label.ravel() for _, label in pairs])[truth_N != 255]
    truth_N = truth_N[truth_N != 255]
    assume(truth_N.size)
    expected_CC = confusion_matrix(truth_N, label_N, labels=range(5))
    np.testing.assert_array_equal(counts_CC, expected_CC)
    seen = np.union1d(truth_N, label_N)
    expected_C = jaccard_score(truth_N, label_N, labels=seen, average=None)
    np.testing.assert_allclose(iou(counts_CC)[seen], expected_C)
    assert np.isnan(np.delete(iou(counts_CC), seen)).all()
    assert summary(counts_CC)["miou"] == pytest.approx(expected_C.mean())


def test_class_rows_give_one_row_per_label_with_none_where_undefined() -> None:
    rows = class_rows(np.array(BY_HAND), ("background", "cat", "dog", "cow"), "b", "p", "m")
    assert [row["class_name"] for row in rows] == ["background", "cat", "dog", "cow"]
    assert [row["present"] for row in rows] == [True, True, True, False]
    assert rows[1] == {
        "benchmark": "b",
        "protocol": "p",
        "model": "m",
        "class_index": 1,
        "class_name": "cat",
        "iou": pytest.approx(2 / 3),
        "present": True,
    }
    assert rows[3]["iou"] is None


def test_class_rows_names_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="2 names for 4 labels"):
        class_rows(np.array(BY_HAND), ("background", "cat"), "b", "p", "m")


def test_class_rows_fill_the_metrics_table() -> None:
    rows = class_rows(np.array(BY_HAND), ("background", "cat", "dog", "cow"), "b", "p", "m")
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    assert table_of("metrics", columns).column("iou").null_count == 1
