"""Measures over whole sets: Fréchet distance, drift, segmentation scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.linalg import sqrtm

from fastv2v.errors import ConfigError, DataError, ShapeError
from fastv2v.metrics import (
    confusion_matrix,
    drift,
    frechet_distance,
    has_few_samples,
    segmentation_score,
    video_features,
)
from fastv2v.metrics.segmentation import IGNORED


def gaussian(mean, covariance, count=50, seed=0):
    """Samples whose mean and sample covariance are exactly the given ones."""
    x = np.random.default_rng(seed).normal(size=(count, len(mean)))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(x.T @ x / (count - 1))).T
    return x @ np.linalg.cholesky(np.asarray(covariance)).T + mean


class TestFrechetDistance:
    def test_equal_sets_have_distance_zero(self):
        x = np.random.default_rng(0).normal(size=(30, 64))
        assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)

    def test_two_normals_a_unit_apart(self):
        assert frechet_distance(gaussian([0], [[1]]), gaussian([1], [[1]], seed=1)) == pytest.approx(1)

    def test_deviations_of_one_dimension_are_subtracted(self):
        assert frechet_distance(gaussian([0], [[4]]), gaussian([0], [[25]], seed=1)) == pytest.approx((5 - 2) ** 2)

    def test_a_shift_at_equal_covariance_costs_its_square(self):
        covariance = [[2, 0.5], [0.5, 1]]
        a, b = gaussian([0, 0], covariance), gaussian([3, 4], covariance, seed=1)
        assert frechet_distance(a, b) == pytest.approx(25)

    def test_agrees_with_the_matrix_root(self):
        rng = np.random.default_rng(3)
        a, b = rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(25, 6)) + 0.3
        root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
        wanted = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
        assert frechet_distance(a, b) == pytest.approx(wanted)

    def test_fewer_samples_than_dimensions_agree_with_the_regularised_root(self):
        rng = np.random.default_rng(4)
        a, b = rng.normal(size=(5, 12)), rng.normal(size=(20, 12))
        eye = 1e-10 * np.eye(12)
        root = sqrtm((np.cov(a.T) + eye) @ (np.cov(b.T) + eye)).real
        wanted = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
        assert frechet_distance(a, b) == pytest.approx(wanted, abs=1e-3)
        assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b))

    def test_what_is_no_two_sets_is_refused(self):
        good = np.zeros((3, 2))
        with pytest.raises(ShapeError, match="at least 2"):
            frechet_distance(good[:1], good)
        with pytest.raises(ShapeError, match="lengths 2 and 1"):
            frechet_distance(good, good[:, :1])
        with pytest.raises(DataError, match="second features"):
            frechet_distance(good, good * np.nan)

    def test_small_sets_are_known_as_such(self):
        assert has_few_samples(2559, 1280)
        assert not has_few_samples(2560, 1280)


def test_a_video_feature_is_mean_and_mean_absolute_change():
    assert video_features(np.array([[0.0, 4], [2, 1], [1, 1]])).tolist() == [1, 2, 1.5, 1.5]
    with pytest.raises(ShapeError, match="two frames"):
        video_features(np.zeros((1, 4)))


class TestDrift:
    def test_a_falling_curve_loses_what_it_falls(self):
        curve = [30 - 0.05 * t for t in range(100)]
        found = drift(curve)
        assert found.early_db == pytest.approx(30 - 0.05 * 14.5)
        assert found.drop_db == pytest.approx(0.05 * 80)

    def test_windows_may_be_chosen_and_given_frames_have_no_value(self):
        assert drift([math.nan, 20, 22, 10, 12], (1, 3), (3, 5)).drop_db == 10
        assert drift([25.0] * 8, (0, 2), (6, 8)).drop_db == 0

    def test_impossible_windows_are_refused(self):
        with pytest.raises(ShapeError, match="has 99 frames"):
            drift([1.0] * 99)
        with pytest.raises(ShapeError, match="given frames"):
            drift([math.nan, 20, 22, 10], (0, 2), (2, 4))
        for early, late in (((3, 3), (4, 5)), ((4, 6), (2, 3)), ((-1, 2), (3, 4))):
            with pytest.raises(ConfigError, match="early stretch"):
                drift([1.0] * 9, early, late)


class TestSegmentation:
    def test_equal_maps_score_one_and_absent_classes_are_left_out(self):
        labels = np.array([[0, 0, 3], [3, 3, IGNORED]])
        score = segmentation_score(confusion_matrix(labels, np.where(labels == IGNORED, 2, labels), 5))
        assert (score.miou, score.pixel_accuracy, score.class_accuracy) == (1, 1, 1)
        assert [math.isnan(x) for x in score.iou] == [False, True, True, False, True]

    def test_a_worked_example(self):
        truth, predicted = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 2])
        score = segmentation_score(confusion_matrix(truth, predicted, 4))
        # Class 2 is predicted and never true: it is present, with an intersection of 0.
        assert score.miou == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)
        assert score.pixel_accuracy == pytest.approx(3 / 5)
        assert score.class_accuracy == pytest.approx((2 / 3 + 1 / 2) / 2)

    def test_matrices_of_frames_add_up(self):
        rng = np.random.default_rng(0)
        truth, predicted = rng.integers(0, 4, (2, 3, 8, 8))
        parts = sum(confusion_matrix(a, b, 4) for a, b in zip(truth, predicted, strict=True))
        assert np.array_equal(parts, confusion_matrix(truth, predicted, 4))
        assert parts[1, 2] == ((truth == 1) & (predicted == 2)).sum()

    def test_what_cannot_be_scored_is_refused(self):
        with pytest.raises(ShapeError, match="differ in shape"):
            confusion_matrix(np.zeros((2, 2), int), np.zeros((2, 3), int), 2)
        with pytest.raises(ShapeError, match="predicted class ids"):
            confusion_matrix(np.zeros(2, int), np.full(2, 2), 2)
        with pytest.raises(ShapeError, match="every label is ignored"):
            segmentation_score(np.zeros((2, 2), int))
        with pytest.raises(ShapeError, match="square"):
            segmentation_score(np.zeros((2, 3), int))
