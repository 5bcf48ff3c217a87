"""The montage: the right way round in every orientation, true to scale, small, repeatable, without patient data."""

import io
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clara_flow.operators.imaging import Volume, write_volume
from clara_flow.operators.volume_montage.montage import SIZE_LIMIT_BYTES, draw_montage, label_volumes_ml

ORIENTATIONS = [
    "".join(letters) for axes in itertools.permutations(("LR", "AP", "SI")) for letters in itertools.product(*axes)
]
OUTLINE = (255, 82, 82)


def upright(shape=(40, 60, 50), spacing=(2.0, 1.0, 1.0)):
    """An empty volume whose axes run S, P, L."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = *spacing, 1
    affine[:3, 3] = -20, -30, 7
    return Volume(np.zeros(shape, np.int16), affine)


def ball(volume, centre, radius_mm):
    index = np.indices(volume.shape).reshape(3, -1).T
    apart = np.linalg.norm((index - centre) * volume.spacing_mm, axis=1).reshape(volume.shape)
    return (apart <= radius_mm).astype(np.uint8)


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def panels(picture):
    """The three sections, found by the dark ground between them, as (rows, columns, 3)."""
    ground = (picture[:-50] == (13, 17, 23)).all(axis=2)
    columns = np.flatnonzero(~ground.all(axis=0))
    groups = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)
    cut = []
    for group in groups:
        rows = np.flatnonzero(~ground[:, group].all(axis=1))
        cut.append(picture[rows[0] : rows[-1] + 1, group[0] : group[-1] + 1])
    return cut


def red_box(panel):
    """Height and width of what is outlined."""
    red = (panel[:, :, 0] - panel[:, :, 1] > 100) & (panel[:, :, 0] - panel[:, :, 2] > 100)
    rows, columns = np.nonzero(red)
    return rows.max() - rows.min() + 1, columns.max() - columns.min() + 1


def bright_centre(panel):
    """Middle of the bright marker as shares of the panel's height and width."""
    rows, columns = np.nonzero(panel.min(axis=2) > 235)
    return rows.mean() / panel.shape[0], columns.mean() / panel.shape[1]


def marked():
    """A grey block with a bright marker on the patient's right, at the front, near the head; the mask around it."""
    volume = upright()
    volume.array[4:-4, 6:-6, 6:-6] = 300
    marker = ball(volume, (28, 18, 15), 8)
    volume.array[marker > 0] = 2000
    return volume, volume.with_array(marker)


def test_right_is_left_front_is_up_or_left_and_head_is_up():
    axial, coronal, sagittal = panels(pixels(draw_montage(*marked())))
    row, column = bright_centre(axial)
    assert row < 0.4
    assert column < 0.4
    row, column = bright_centre(coronal)
    assert row < 0.4
    assert column < 0.4
    row, column = bright_centre(sagittal)
    assert row < 0.4
    assert column < 0.4


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_every_storage_order_gives_the_same_picture(codes):
    image, mask = marked()
    assert draw_montage(image.reoriented(codes), mask) == draw_montage(image, mask.reoriented(codes))


@settings(max_examples=15, deadline=None)
@given(spacing=st.tuples(*[st.floats(0.6, 4.0)] * 3))
def test_a_ball_looks_round_whatever_the_spacing(spacing):
    shape = tuple(int(100 / mm) for mm in spacing)
    image = upright(shape, spacing)
    mask = image.with_array(ball(image, [size // 2 for size in shape], 30))
    for panel in panels(pixels(draw_montage(image, mask))):
        height, width = red_box(panel)
        coarseness = 2 * max(spacing) / 60
        assert abs(height / width - 1) < coarseness + 0.05


def test_the_three_sections_have_one_scale():
    image = upright((50, 120, 80), (2.0, 1.0, 1.0))  # 100 mm high, 120 deep, 80 wide
    image.array[:] = 500
    image.array[0] = 0
    axial, coronal, sagittal = (panel.shape[:2] for panel in panels(pixels(draw_montage(image))))
    assert axial[0] / axial[1] == pytest.approx(120 / 80, rel=0.02)
    assert coronal[0] / coronal[1] == pytest.approx(100 / 80, rel=0.02)
    assert sagittal[0] / sagittal[1] == pytest.approx(100 / 120, rel=0.02)
    assert axial[1] == pytest.approx(coronal[1], abs=1)


def test_a_mask_on_another_grid_is_outlined_at_the_same_place():
    image = upright((60, 60, 60), (1.0, 1.0, 1.0))
    coarse_affine = image.affine_lps.copy()
    coarse_affine[:3, :3] *= 2
    coarse = Volume(np.zeros((30, 30, 30), np.uint8), coarse_affine)
    coarse = coarse.with_array(ball(coarse, (15, 15, 15), 12))
    fine = image.with_array(ball(image, (30, 30, 30), 12))
    for one, other in zip(
        panels(pixels(draw_montage(image, coarse))), panels(pixels(draw_montage(image, fine))), strict=True
    ):
        assert np.abs(np.subtract(red_box(one), red_box(other))).max() <= 2.5 * one.shape[0] / 60


@pytest.mark.parametrize("mask", [None, upright()], ids=["no mask", "empty mask"])
def test_without_a_segment_nothing_is_outlined(mask):
    picture = pixels(draw_montage(marked()[0], mask))
    assert not ((picture[:, :, 0] - picture[:, :, 1]) > 60).any()


def test_sections_go_through_the_mask_even_where_its_centre_is_empty():
    image = upright((40, 60, 50))
    mask = image.array.astype(np.uint8)
    mask[5:8, 10:14, 10:14] = 1
    mask[30:33, 40:44, 40:44] = 1
    for panel in panels(pixels(draw_montage(image, image.with_array(mask)))):
        assert red_box(panel)


def test_each_label_has_its_colour():
    image = upright((30, 40, 60))
    labels = image.array.astype(np.uint8)
    labels[10:20, 10:30, 10:30] = 1
    labels[10:20, 10:30, 30:50] = 2
    axial = panels(pixels(draw_montage(image, image.with_array(labels))))[0]
    assert (axial == OUTLINE).all(axis=2).any()
    assert (axial == (86, 180, 233)).all(axis=2).any()


def test_label_volumes():
    image = upright((10, 10, 10), (2.0, 0.5, 1.0))
    labels = image.array.copy()
    labels[0, 0, :5] = 2
    labels[1, :, :] = 7
    assert label_volumes_ml(image.with_array(labels)) == pytest.approx({2: 0.005, 7: 0.1})


@pytest.mark.parametrize("shape", [(300, 300, 300), (1, 200, 200), (200, 8, 8)])
def test_the_picture_is_small_even_of_noise(shape):
    rng = np.random.default_rng(1)
    image = upright(shape, (1.0, 1.0, 1.0))
    png = draw_montage(image.with_array(rng.integers(-1000, 3000, shape).astype(np.int16)))
    assert len(png) <= SIZE_LIMIT_BYTES
    assert Image.open(io.BytesIO(png)).info == {}


@pytest.mark.parametrize("value", [0, 7, np.nan])
def test_a_flat_volume_is_drawn(value):
    image = upright((10, 20, 20))
    assert draw_montage(image.with_array(np.full(image.shape, value, np.float32)))


# ---------------------------------------------------------------- the operator


class Stage:
    """A montage stage with its folders; `run` calls the operator as the platform does."""

    def __init__(self, folder):
        self.folders = [folder / name for name in ("input", "mask", "output")]
        for path in self.folders:
            path.mkdir()
        self.volumes, self.masks, self.output = self.folders
        self.manifest = folder / "manifest.json"

    def run(self, *, inputs=2):
        document = {
            "job_id": "6f1c2b1e-7a53-4f0e-9a5e-0a4b6a0a9f11",
            "stage": "montage",
            "inputs": [
                {"name": name, "from": source, "path": str(path)}
                for name, source, path in [("volume", "reader", self.volumes), ("mask", "brain", self.masks)][:inputs]
            ],
            "outputs": [{"name": "picture", "path": str(self.output)}],
        }
        self.manifest.write_text(json.dumps(document))
        return subprocess.run(
            [sys.executable, "-m", "clara_flow.operators.volume_montage"],
            env={"PATH": os.environ["PATH"], "CLARA_IO_MANIFEST": str(self.manifest)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def pictures(self):
        return {path.name: path.read_bytes() for path in self.output.iterdir()}


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path)


def test_one_pair_gives_montage_png_whatever_the_names(stage):
    image, mask = marked()
    write_volume(stage.volumes / "1.2.840.1.1.mhd", image)
    write_volume(stage.masks / "brain.nii.gz", mask)
    done = stage.run()
    assert done.returncode == 0, done.stdout
    assert stage.pictures() == {"montage.png": draw_montage(image, mask)}
    assert "width=" in done.stdout
    assert "1.2.840" not in done.stdout


def test_several_pairs_are_matched_by_name_and_a_missing_mask_is_told(stage):
    image, mask = marked()
    for name in ("a", "b"):
        write_volume(stage.volumes / f"{name}.mhd", image)
    write_volume(stage.masks / "b.nii", mask)
    done = stage.run()
    assert done.returncode == 0, done.stdout
    assert stage.pictures() == {"a.png": draw_montage(image), "b.png": draw_montage(image, mask)}
    assert "volume 1 of 2 has no mask of its name" in done.stdout


def test_without_masks_the_volume_is_drawn(stage):
    image, _ = marked()
    write_volume(stage.volumes / "a.mhd", image)
    assert stage.run(inputs=1).returncode == 0
    assert stage.pictures() == {"montage.png": draw_montage(image)}


def test_no_volume_is_an_error_that_says_where(stage):
    done = stage.run()
    assert done.returncode == 1
    assert f"no volume (.mhd, .mha, .nii, .nii.gz) in {stage.volumes}" in done.stdout
    assert stage.pictures() == {}


def test_a_broken_volume_is_an_error_without_traceback(stage):
    (stage.volumes / "a.mhd").write_text("NDims = 3\n")
    done = stage.run()
    assert done.returncode == 1
    assert "volume 1 of 1 cannot be drawn: a.mhd" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
