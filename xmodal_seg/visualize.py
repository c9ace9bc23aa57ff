# SPDX-License-Identifier: Apache-2.0
"""Pictures of labelled points: camera overlays, bird's-eye views and a summary panel. All images are RGB uint8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from xmodal_seg.geometry import project_points
from xmodal_seg.labels import IGNORE_INDEX, UNLABELED, LabelSpace
from xmodal_seg.structures import CameraView, Frame

Image = NDArray[np.uint8]

_GROUND_COLOUR = (24, 24, 28)
_PANEL_WIDTH_IN = 16.0
_PANEL_DPI = 100


def overlay(
    image: Image, uv: NDArray[np.floating], labels: NDArray[np.uint8], palette: Image, *, radius: int = 2
) -> Image:
    """A copy of `image` (H, W, 3) with a disc of `radius` px in its label's colour at each point.

    Args:
        uv: (P, 2) px; rows that are NaN or outside the image are left out.
        labels: (P,) rows of `palette` (256, 3).
    """
    painted = np.ascontiguousarray(image).copy()
    _paint(painted, uv, palette[labels], radius)
    return painted


def render_label_image(
    uv: NDArray[np.floating], labels: NDArray[np.uint8], image_size: tuple[int, int], *, radius: int = 2
) -> Image:
    """(H, W) label of the points that fall on each pixel, UNLABELED where there is none; same points as `overlay`."""
    label_image = np.full(image_size, UNLABELED, dtype=np.uint8)
    _paint(label_image, uv, labels, radius)
    return label_image


def birds_eye_view(
    points: NDArray[np.float32],
    labels: NDArray[np.uint8],
    palette: Image,
    *,
    extent_m: float = 80.0,
    size_px: int = 600,
    radius: int = 1,
) -> Image:
    """(size_px, size_px, 3) view from above: sensor in the centre, forward (x) up, left (y) left.

    `extent_m` is the side of the square shown; a higher point hides a lower one.
    """
    view = np.full((size_px, size_px, 3), _GROUND_COLOUR, dtype=np.uint8)
    order = np.argsort(points[:, 2])
    uv = (size_px - 1) / 2 - points[order][:, [1, 0]] * (size_px / extent_m)
    _paint(view, uv, palette[labels[order]], radius)
    return view


def summary_panel(
    frame: Frame, labels: NDArray[np.uint8], label_space: LabelSpace, *, title: str, warning: str = ""
) -> Image:
    """One picture of a labelled frame: camera overlays, bird's-eye view, points per class.

    Args:
        labels: (N,) of the frame's points, UNLABELED where nothing is said. If the frame has labels of its own, they
            are drawn beside as ground truth.
        warning: a line in red under the title, such as that the weights are untrained.
    """
    # Without pyplot: no global figure list, no backend that wants a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, max(1, len(frame.cameras)))
    rows = -(-len(frame.cameras) // columns)
    cell_in = _PANEL_WIDTH_IN / columns
    row_in = max((cell_in * view.image.shape[0] / view.image.shape[1] + 0.35 for view in frame.cameras), default=0.0)
    bottom_in, head_in = 6.0, 0.9
    height_in = head_in + rows * row_in + bottom_in
    figure = Figure(figsize=(_PANEL_WIDTH_IN, height_in), dpi=_PANEL_DPI)
    canvas = FigureCanvasAgg(figure)
    figure.text(0.01, 1 - 0.35 / height_in, title, fontsize=15, weight="bold", va="center")
    figure.text(0.01, 1 - 0.68 / height_in, warning, fontsize=12, color="crimson", va="center")

    for number, view in enumerate(frame.cameras):
        row, column = divmod(number, columns)
        bottom = 1 - (head_in + (row + 1) * row_in - 0.02) / height_in
        axes = figure.add_axes((column / columns + 0.003, bottom, 1 / columns - 0.006, (row_in - 0.35) / height_in))
        picture = camera_overlay(frame, view, labels, label_space, width_px=cell_in * _PANEL_DPI)
        _show(axes, picture, f"{view.name}, predicted ({(view.stamp_ns - frame.stamp_ns) / 1e6:+.1f} ms)")
    _draw_bottom(figure, frame, labels, label_space, height=(bottom_in - 0.2) / height_in)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def camera_overlay(
    frame: Frame, view: CameraView, labels: NDArray[np.uint8], label_space: LabelSpace, *, width_px: float | None = None
) -> Image:
    """The view's image with the frame's points; discs sized to be seen when shown `width_px` wide (None: as it is)."""
    index, uv, depth = project_points(frame.points, view.calibration)
    far_first = np.argsort(-depth)
    shown_px = view.image.shape[1] if width_px is None else width_px
    radius = max(1, round(1.4 * view.image.shape[1] / shown_px))
    return overlay(view.image, uv[far_first], labels[index[far_first]], label_space.palette(), radius=radius)


def class_counts(labels: NDArray[np.integer], label_space: LabelSpace) -> dict[str, int]:
    """Points per class, and under `unlabeled` everything that is no class."""
    counts = np.bincount(labels[(labels >= 0) & (labels < label_space.num_classes)], minlength=label_space.num_classes)
    named = {name: int(count) for name, count in zip(label_space.class_names, counts, strict=True)}
    return {**named, "unlabeled": int(labels.size - counts.sum())}


def write_png(path: str | Path, image: Image) -> None:
    """Write an RGB image. Raises ValueError if the file cannot be written."""
    path = Path(path)
    encoded, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert encoded
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from error


def _paint(canvas: Image, uv: NDArray[np.floating], values: NDArray[np.uint8], radius: int) -> None:
    """Set discs of `values` around `uv` in `canvas`; of points that cover one pixel the last wins."""
    height, width = canvas.shape[:2]
    with np.errstate(invalid="ignore"):  # NaN compares false
        inside = np.flatnonzero(
            (uv[:, 0] >= -0.5) & (uv[:, 0] < width - 0.5) & (uv[:, 1] >= -0.5) & (uv[:, 1] < height - 0.5)
        )
    centres = np.rint(uv[inside]).astype(np.int32)
    offsets = _disc(radius)
    u = np.clip(centres[:, :1] + offsets[:, 0], 0, width - 1)
    v = np.clip(centres[:, 1:] + offsets[:, 1], 0, height - 1)
    pixels = canvas.reshape(height * width, *canvas.shape[2:])
    pixels[(v * width + u).reshape(-1)] = np.repeat(values[inside], len(offsets), axis=0)


def _disc(radius: int) -> NDArray[np.int32]:
    """(M, 2) offsets (u, v) of a disc's pixels."""
    v, u = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return np.argwhere(u * u + v * v <= radius * radius + 0.5).astype(np.int32) - radius


def _draw_bottom(
    figure: Any, frame: Frame, labels: NDArray[np.uint8], label_space: LabelSpace, *, height: float
) -> None:
    """Bird's-eye views on the left, the bars on the right."""
    views = [("from above, predicted", labels)]
    if frame.labels is not None:
        truth = np.where(frame.labels == IGNORE_INDEX, UNLABELED, frame.labels).astype(np.uint8)
        views.append(("from above, ground truth", truth))
    side = 0.345
    for number, (name, view_labels) in enumerate(views):
        axes = figure.add_axes((0.01 + number * (side + 0.005), 0.01, side, height * 0.93))
        _show(
            axes,
            birds_eye_view(frame.points, view_labels, label_space.palette(), size_px=552),
            f"{name} (80 m wide, forward is up)",
        )
    left = 0.01 + len(views) * (side + 0.005) + 0.11
    counts = class_counts(labels, label_space)
    colours = [np.array(colour) / 255 for colour in (*label_space.colours, label_space.palette()[UNLABELED])]
    axes = figure.add_axes((left, 0.04, 0.96 - left, height * 0.86))
    bars = axes.barh(list(counts), list(counts.values()), color=colours, edgecolor="black", linewidth=0.5)
    axes.bar_label(bars, labels=[f"{count:,}" for count in counts.values()], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.22)
    axes.set_title(f"{frame.num_points:,} points by predicted class", fontsize=11)
    axes.tick_params(axis="x", labelbottom=False, bottom=False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _show(axes: Any, picture: Image, name: str) -> None:
    axes.imshow(picture)
    axes.set_title(name, fontsize=10, pad=3)
    axes.set_axis_off()
