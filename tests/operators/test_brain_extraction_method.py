"""The method around the networks: geometry, resampling, components, boxes, refusals. No model is needed."""

from __future__ import annotations

import doctest
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from clara_flow.operators.brain_extraction import extraction
from clara_flow.operators.brain_extraction.extraction import (
    ExtractionError,
    brain_box,
    extract_brain,
    fill_voids,
    largest_component,
    normalise,
    resample,
)
from clara_flow.operators.imaging import Volume

ORIENTATIONS = [
    "".join(codes) for lines in itertools.permutations(("LR", "PA", "SI")) for codes in itertools.product(*lines)
]

small_masks = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).random((6, 7, 8)) < np.random.default_rng(seed).uniform(0.05, 0.95)
)


def bright(image: np.ndarray) -> np.ndarray:
    """Stands for a network: brain is where the normalised image is bright."""
    return (image > 0.6).astype(np.float32)


def head(towards: str = "SPL") -> Volume:
    """A lopsided bright body in noise on an oblique, anisotropic grid; no symmetry hides a wrong flip."""
    rng = np.random.default_rng(7)
    slices, rows, columns = np.meshgrid(np.arange(20), np.arange(26), np.arange(31), indexing="ij")
    body = ((slices - 11) / 6) ** 2 + ((rows - 10) / 8) ** 2 + ((columns - 18) / 9) ** 2 + slices * columns / 900 < 1
    array = (rng.integers(0, 50, body.shape) + 800 * body).astype(np.int16)
    angle = np.deg2rad(12)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([[0, 0, 0.9], [0, 1.1, 0], [3.0, 0, 0]])
    affine[:3, 3] = [-40.0, 12.5, 7.0]
    return Volume(array, affine).reoriented(towards)


def test_the_mask_lies_where_the_brain_lies() -> None:
    volume = head()
    mask = extract_brain(volume, bright, bright)
    assert mask.dtype == np.uint8
    assert mask.shape == volume.shape
    assert mask.flags.c_contiguous
    brain = volume.array > 400
    assert set(np.unique(mask)) == {0, 1}
    assert 2 * np.count_nonzero(brain & (mask > 0)) / (brain.sum() + mask.sum()) > 0.98


def test_there_are_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(ORIENTATIONS))
def test_the_mask_follows_every_flip_and_permutation(towards: str) -> None:
    volume = head(towards)
    mask = volume.with_array(extract_brain(volume, bright, bright))
    expected = extract_brain(head(), bright, bright)
    assert np.array_equal(mask.reoriented(head().axis_codes).array, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32, np.float64, np.dtype(">i2")])
def test_every_real_voxel_type_gives_the_same_mask(dtype: np.typing.DTypeLike) -> None:
    volume = head()
    other = Volume((volume.array // 4).astype(dtype), volume.affine_lps)
    assert np.array_equal(
        extract_brain(other, bright, bright),
        extract_brain(Volume(volume.array // 4, volume.affine_lps), bright, bright),
    )


def test_the_input_is_left_as_it_is() -> None:
    volume = head()
    before = volume.array.copy()
    extract_brain(volume, bright, bright)
    assert np.array_equal(volume.array, before)


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.ones((1, 40, 40), np.int16), "a 2-D image of shape"),
        (np.ones((40, 1, 40), np.int16), "a 2-D image of shape"),
        (np.zeros((4, 4, 4), np.complex64), "voxels of type complex64"),
        (np.zeros((4, 4, 4), bool), "voxels of type bool"),
        (np.full((4, 4, 4), 7, np.int16), "every voxel has the same value"),
        (np.where(np.arange(64).reshape(4, 4, 4) == 9, np.nan, 1.0), "not a number or infinite"),
        (np.where(np.arange(64).reshape(4, 4, 4) == 9, np.inf, 1.0), "not a number or infinite"),
        (np.eye(900, dtype=np.int16)[:, :, np.newaxis].repeat(2, 2)[:, :2], "almost every voxel has the same value"),
    ],
)
def test_what_is_no_head_is_told(array: np.ndarray, told: str) -> None:
    with pytest.raises(ExtractionError, match=told):
        extract_brain(Volume(array, np.eye(4)), bright, bright)


def test_no_brain_is_told() -> None:
    with pytest.raises(ExtractionError, match="no brain found; is this a T1-weighted MR"):
        extract_brain(head(), np.zeros_like, bright)
    with pytest.raises(ExtractionError, match="no brain found"):
        extract_brain(head(), bright, np.zeros_like)


def test_a_speck_is_no_brain() -> None:
    def speck(image: np.ndarray) -> np.ndarray:
        found = np.zeros_like(image)
        found[5, 5, 5] = 1
        return found

    with pytest.raises(ExtractionError, match="too little brain found"):
        extract_brain(head(), speck, bright)


@given(st.integers(2, 300), st.integers(2, 300))
def test_resampling_picks_the_voxel_under_the_centre(old: int, new: int) -> None:
    picked = resample(np.arange(old), (new,))
    centres = (np.arange(new) + 0.5) * old / new
    assert picked.shape == (new,)
    assert (np.diff(picked) >= 0).all()
    assert (np.abs(picked + 0.5 - centres) <= 0.5 + 1e-4).all()


@given(st.integers(1, 40))
def test_resampling_to_the_same_shape_changes_nothing(side: int) -> None:
    image = np.random.default_rng(side).random((side, 3, 2))
    assert np.array_equal(resample(image, image.shape), image)


def test_normalising_gives_the_trained_mean_and_deviation() -> None:
    image = np.random.default_rng(0).normal(300, 90, (20, 20, 20)).astype(np.float32)
    scaled = normalise(image, 100, 500)
    assert scaled.dtype == np.float32
    assert scaled.mean() == pytest.approx(0.449, abs=1e-5)
    assert scaled.std(ddof=1) == pytest.approx(0.226, abs=1e-5)
    with pytest.raises(ExtractionError, match="one value only"):
        normalise(image, 5000, 6000)


@given(small_masks)
def test_voids_are_filled_as_scipy_fills_them(mask: np.ndarray) -> None:
    assert np.array_equal(fill_voids(mask), ndimage.binary_fill_holes(mask))


@given(small_masks)
def test_the_largest_component_is_one_part_and_no_part_is_larger(mask: np.ndarray) -> None:
    if not mask.any():
        mask[0, 0, 0] = True
    largest = largest_component(mask)
    corners = np.ones((3, 3, 3))
    assert ndimage.label(largest, corners)[1] == 1
    assert not (largest & ~mask).any()
    rest, count = ndimage.label(mask & ~largest, corners)
    assert count == 0 or np.bincount(rest.ravel())[1:].max() <= largest.sum()


def test_the_box_has_its_margin_and_stays_inside() -> None:
    foreground = np.zeros((128, 128, 128), bool)
    foreground[32:96, 10:128, 40:60] = True
    assert brain_box(foreground, (256, 128, 64)) == (slice(51, 205), slice(0, 128), slice(19, 31))


def test_the_examples_of_the_module_are_true() -> None:
    result = doctest.testmod(extraction)
    assert result.attempted > 0
    assert result.failed == 0
