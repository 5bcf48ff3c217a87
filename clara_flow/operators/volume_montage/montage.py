"""The picture: axial, coronal and sagittal section through the mask, side by side, to one scale.

Radiological convention: the patient's right is on the left of the axial and the coronal section, the front on the
left of the sagittal one. Oblique volumes are shown along their own axes, which are named after the nearest patient
axes. Nothing but what the voxels show is burned in: no name, id or date. The same volumes give the same bytes.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage.measure import find_contours

from clara_flow.operators.imaging import Volume

SIZE_LIMIT_BYTES = 400_000

_WIDTH = 1280
_HEIGHT_LIMIT = 620
_MARGIN = 14
_FOOTER = 40
_SUPERSAMPLING = 4
_GROUND = (13, 17, 23)
_TEXT = (205, 214, 224)
_SHADE = (0, 0, 0)
_BAR_MM = (200, 100, 50, 20, 10, 5, 2, 1)
# outline colours by label, told apart by people with any colour vision (after Okabe and Ito)
_COLOURS = ((255, 82, 82), (86, 180, 233), (240, 228, 66), (0, 190, 140), (204, 121, 167), (230, 159, 0))


@dataclass(frozen=True)
class _View:
    """One section: `pixels` and `labels` (rows, columns) as seen, size of a pixel (row, column) in millimetres."""

    name: str
    pixels: np.ndarray
    labels: np.ndarray
    pixel_mm: tuple[float, float]
    letters: str  # at the left, right, top and bottom edge

    @property
    def size_mm(self) -> tuple[float, float]:
        """(height, width)."""
        return self.pixels.shape[0] * self.pixel_mm[0], self.pixels.shape[1] * self.pixel_mm[1]


def draw_montage(image: Volume, mask: Volume | None = None) -> bytes:
    """PNG of `image` with the outlines of the labels in `mask`; at most SIZE_LIMIT_BYTES.

    image   any real dtype, any orientation.
    mask    whole numbers, 0 = nothing; on another grid it is looked up at the nearest voxel. None or all 0: sections
            through the centre of the volume.
    """
    upright = image.reoriented("SPL")
    labels = np.zeros(upright.shape, np.uint8) if mask is None else _on_grid(mask, upright)
    views = _views(upright, labels, _window(upright.array))
    millilitres = {} if mask is None else label_volumes_ml(mask)
    width = _WIDTH
    while True:
        png = _encoded(_drawn(views, millilitres, width))
        if len(png) <= SIZE_LIMIT_BYTES:
            return png
        width = width * 7 // 8


def label_volumes_ml(mask: Volume) -> dict[int, float]:
    """{label: millilitres} of the labels other than 0, ascending."""
    voxel_ml = abs(float(np.linalg.det(mask.affine_lps[:3, :3]))) / 1000
    values, counts = np.unique(mask.array, return_counts=True)
    return {int(value): float(count * voxel_ml) for value, count in zip(values, counts, strict=True) if value != 0}


def _on_grid(mask: Volume, grid: Volume) -> np.ndarray:
    """Labels of `mask` at the voxels of `grid`: (slices, rows, columns) of `grid`, 0 outside the mask's volume."""
    upright = mask.reoriented("SPL")
    if upright.same_grid(grid):
        return upright.array
    to_mask = np.linalg.inv(mask.affine_lps) @ grid.affine_lps
    rows, columns = np.indices(grid.shape[1:], dtype=np.float64)
    looked_up = np.zeros(grid.shape, mask.array.dtype)
    for index in range(grid.shape[0]):  # slice by slice: coordinates of a whole volume would take gigabytes
        at = [to_mask[axis, 0] * index + to_mask[axis, 1] * rows + to_mask[axis, 2] * columns for axis in range(3)]
        nearest = [np.rint(at[axis] + to_mask[axis, 3]).astype(np.intp) for axis in range(3)]
        inside = np.all([(n >= 0) & (n < size) for n, size in zip(nearest, mask.shape, strict=True)], axis=0)
        looked_up[index][inside] = mask.array[tuple(n[inside] for n in nearest)]
    return looked_up


def _window(array: np.ndarray) -> tuple[float, float]:
    """Values shown black and white: from the darkest of all to the brightest of what is not background."""
    step = max(1, round((array.size / 1_000_000) ** (1 / 3)))
    sample = array[::step, ::step, ::step].astype(np.float64).ravel()
    sample = sample[np.isfinite(sample)]
    if sample.size == 0 or sample.min() == sample.max():
        return (0.0, 1.0) if sample.size == 0 else (sample[0] - 0.5, sample[0] + 0.5)
    low = float(np.percentile(sample, 1))
    high = float(np.percentile(sample[sample >= sample.mean()], 99.5))
    return low, max(high, low + 1e-6)


def _views(volume: Volume, labels: np.ndarray, window: tuple[float, float]) -> list[_View]:
    """Axial, coronal, sagittal section of a volume whose axes run S, P, L."""
    slice_, row, column = _middle(labels)
    slice_mm, row_mm, column_mm = (float(mm) for mm in volume.spacing_mm)
    low, high = window
    shown: list[tuple[str, Any, tuple[float, float], str]] = [
        ("axial", np.s_[slice_, :, :], (row_mm, column_mm), "RLAP"),
        ("coronal", np.s_[::-1, row, :], (slice_mm, column_mm), "RLHF"),
        ("sagittal", np.s_[::-1, :, column], (slice_mm, row_mm), "APHF"),
    ]
    views = []
    for name, where, pixel_mm, letters in shown:
        grey = np.clip((np.nan_to_num(volume.array[where].astype(np.float64)) - low) / (high - low), 0, 1)
        views.append(_View(name, grey.astype(np.float32), labels[where], pixel_mm, letters))
    return views


def _middle(labels: np.ndarray) -> tuple[int, int, int]:
    """Per axis the plane nearest to the mask's centre of mass that holds some of the mask."""
    middle = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        counts = np.count_nonzero(labels, axis=others)
        planes = np.flatnonzero(counts)
        if planes.size == 0:
            middle.append(labels.shape[axis] // 2)
            continue
        centre = float((counts[planes] * planes).sum() / counts[planes].sum())
        middle.append(int(planes[np.abs(planes - centre).argmin()]))
    return middle[0], middle[1], middle[2]


def _drawn(views: list[_View], millilitres: dict[int, float], width: int) -> Image.Image:
    """The whole picture, about `width` pixels wide."""
    heights_mm, widths_mm = zip(*(view.size_mm for view in views), strict=True)
    scale = min((width - 4 * _MARGIN) / sum(widths_mm), _HEIGHT_LIMIT * width / _WIDTH / max(heights_mm))
    panels = [_panel(view, scale) for view in views]
    height = max(panel.height for panel in panels)
    size = sum(panel.width for panel in panels) + 4 * _MARGIN, height + 2 * _MARGIN + _FOOTER
    picture = Image.new("RGB", size, _GROUND)
    x = _MARGIN
    for panel in panels:
        picture.paste(panel, (x, _MARGIN + (height - panel.height) // 2))
        x += panel.width + _MARGIN
    _draw_footer(picture, millilitres, scale)
    return picture


def _panel(view: _View, scale: float) -> Image.Image:
    """One section at `scale` pixels per millimetre, with outlines and letters."""
    height, width = (max(8, round(mm * scale)) for mm in view.size_mm)
    grey = Image.fromarray(view.pixels, "F").resize((width, height), Image.Resampling.BICUBIC)
    eight_bit: np.ndarray = np.clip(np.asarray(grey) * 255 + 0.5, 0, 255).astype(np.uint8)
    panel = Image.fromarray(np.repeat(eight_bit[:, :, None], 3, axis=2), "RGB")
    values = [int(value) for value in np.unique(view.labels) if value != 0]
    for value in values:
        outline = _outline(view.labels == value, (width, height))
        panel.paste(Image.new("RGB", panel.size, _colour(value)), mask=outline)
    pen = ImageDraw.Draw(panel)
    left, right, top, bottom = list(view.letters)
    font = ImageFont.load_default(15)
    for letter, at, anchor in [
        (left, (5, height / 2), "lm"),
        (right, (width - 5, height / 2), "rm"),
        (top, (width / 2, 4), "mt"),
        (bottom, (width / 2, height - 4), "mb"),
    ]:
        pen.text(at, letter, fill=_TEXT, font=font, anchor=anchor, stroke_width=1, stroke_fill=_SHADE)
    pen.text((6, 5), view.name, fill=_TEXT, font=ImageFont.load_default(12), stroke_width=1, stroke_fill=_SHADE)
    return panel


def _outline(inside: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Anti-aliased outline of a boolean (rows, columns) array, stretched to `size` (width, height): 8-bit opacity."""
    width, height = size
    canvas = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    stretch = np.array([canvas.height / inside.shape[0], canvas.width / inside.shape[1]])
    line = max(1, round(1.6 * _SUPERSAMPLING))
    for contour in find_contours(np.pad(inside, 1).astype(np.float32), 0.5):
        points = (contour - 1 + 0.5) * stretch  # (row, column) of pixel centres -> distances from the upper left corner
        points = np.clip(points, line / 2, np.array([canvas.height, canvas.width]) - line / 2)
        pen.line([(float(x), float(y)) for y, x in points], fill=255, width=line, joint="curve")
    return canvas.resize(size, Image.Resampling.BOX)


def _draw_footer(picture: Image.Image, millilitres: dict[int, float], scale: float) -> None:
    """Volumes of the labels at the left, the scale bar at the right."""
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(14)
    middle = picture.height - (_FOOTER + _MARGIN) / 2 + 2
    x: float
    bar_mm = next((mm for mm in _BAR_MM if mm * scale <= 140), 1)
    x1 = picture.width - _MARGIN
    x0 = x1 - round(bar_mm * scale)
    pen.line([(x0, middle), (x1, middle)], fill=_TEXT, width=2)
    for x in (x0, x1):
        pen.line([(x, middle - 4), (x, middle + 4)], fill=_TEXT, width=2)
    bar_text = f"{bar_mm // 10} cm" if bar_mm >= 10 else f"{bar_mm} mm"
    pen.text((x0 - 8, middle), bar_text, fill=_TEXT, font=font, anchor="rm")
    room = x0 - 8 - pen.textlength(bar_text, font=font) - _MARGIN
    x = _MARGIN
    if not millilitres:
        pen.text((x, middle), "no segment", fill=_TEXT, font=font, anchor="lm")
    for value, volume in millilitres.items():
        name = "segment" if len(millilitres) == 1 else f"segment {value}"
        text = f"{name}: {volume:.0f} ml" if volume >= 100 else f"{name}: {volume:.3g} ml"
        needed = 18 + pen.textlength(text, font=font) + 22
        if x + needed > room:
            pen.text((x, middle), "…", fill=_TEXT, font=font, anchor="lm")
            break
        pen.rectangle([x, middle - 5, x + 10, middle + 5], fill=_colour(value))
        pen.text((x + 18, middle), text, fill=_TEXT, font=font, anchor="lm")
        x += needed


def _colour(value: int) -> tuple[int, int, int]:
    return _COLOURS[(value - 1) % len(_COLOURS)]


def _encoded(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return stream.getvalue()
