# SPDX-License-Identifier: Apache-2.0
"""Published mIoU (percent) of Table 1, Exploring Modality Guidance (DriveX, CVPR 2025 workshops), and of Table 3.

Per shift (2D, 3D, 2D3D); 2D of `ours` is the fused head. None where the paper gives no number.
"""

from __future__ import annotations

from collections.abc import Sequence

Columns = tuple[float | None, float | None, float | None]

SHIFTS = (
    "nuscenes_usa_singapore",
    "nuscenes_day_night",
    "virtual_kitti_semantic_kitti",
    "a2d2_semantic_kitti",
)
PUBLISHED_COLUMNS = ("2d", "3d", "2d3d")

# Row of the table -> method of recipes/methods, or None for work of others that is not built here.
METHOD_OF_ROW: dict[str, str | None] = {
    "Source": "source_only",
    "Target": "target_only",
    "xMUDA": "xmuda",
    "xMUDA PL": "xmuda_pl",
    "DsCML": None,
    "DsCML PL": None,
    "BFtD": None,
    "BFtD PL": None,
    "SSE": None,
    "SSE PL": None,
    "FtD++": None,
    "FtD++ PL": None,
    "MM2D3D": None,
    "MM2D3D PL": None,
    "LTA-SAM PL": None,
    "VFM-BOOST PL": None,
    "UniDSeg": None,
    "xMUDA-Fuse": "xmuda_fuse",
    "xMUDA-VFM-Fuse": "xmuda_vfm_fuse",
    "Ours": "ours",
    "Ours PL": "ours_pl",
}

_ROWS: dict[str, tuple[Columns, Columns, Columns, Columns]] = {
    "Source": ((58.4, 62.8, 68.2), (47.8, 68.8, 63.3), (26.8, 42.0, 42.2), (34.2, 35.9, 40.4)),
    "Target": ((75.4, 76.0, 79.6), (61.5, 69.8, 69.2), (66.3, 78.4, 80.1), (59.3, 71.9, 73.6)),
    "xMUDA": ((64.4, 63.2, 69.4), (55.5, 69.2, 67.4), (42.1, 46.7, 48.2), (38.3, 46.0, 44.0)),
    "xMUDA PL": ((67.0, 65.4, 71.2), (57.6, 69.9, 64.4), (45.8, 51.0, 52.0), (41.2, 49.8, 47.5)),
    "DsCML": ((65.6, 56.2, 66.1), (50.9, 49.3, 53.2), (38.4, 38.4, 45.5), (39.6, 45.1, 44.5)),
    "DsCML PL": ((65.6, 57.5, 66.9), (51.4, 49.8, 53.8), (39.6, 41.8, 42.2), (46.8, 51.8, 52.4)),
    "BFtD": ((63.7, 62.2, 69.4), (57.1, 70.4, 68.3), (41.5, 45.5, 51.5), (40.5, 44.4, 48.7)),
    "BFtD PL": ((65.9, 66.0, 71.3), (60.6, 70.0, 66.6), (48.6, 55.4, 57.5), (42.6, 53.7, 52.7)),
    "SSE": ((64.9, 63.9, 69.2), (62.8, 69.0, 68.9), (45.9, 40.0, 49.6), (44.5, 46.8, 48.4)),
    "SSE PL": ((66.9, 64.4, 70.6), (59.1, 67.0, 66.3), (47.2, 53.5, 55.2), (45.9, 51.5, 52.5)),
    "FtD++": ((69.7, 64.6, 69.8), (68.8, 69.6, 71.0), (51.0, 44.0, 52.6), (48.8, 46.2, 51.1)),
    "FtD++ PL": ((71.7, 65.5, 72.3), (68.9, 70.3, 71.8), (52.9, 51.2, 57.8), (51.4, 49.7, 54.8)),
    "MM2D3D": ((71.7, 66.8, 72.4), (70.5, 70.2, 72.1), (53.4, 50.3, 56.5), (42.3, 46.1, 46.2)),
    "MM2D3D PL": ((74.3, 68.3, 74.9), (71.3, 69.6, 72.2), (55.4, 55.0, 59.7), (46.4, 48.7, 50.7)),
    "LTA-SAM PL": ((None, 73.6, None), (None, 70.5, None), (None, 64.9, None), (None, 52.1, None)),
    "VFM-BOOST PL": ((70.0, 65.6, 72.3), (60.6, 70.5, 66.5), (57.2, 52.0, 61.0), (45.0, 52.3, 50.0)),
    "UniDSeg": ((67.2, 67.6, 72.9), (63.2, 71.2, 71.2), (60.5, 50.9, 62.2), (50.7, 55.4, 57.5)),
    # Table 3; there xMUDA has 69.2 on USA -> Singapore, in Table 1 69.4.
    "xMUDA-Fuse": ((None, None, 69.3), (None, None, None), (None, None, None), (None, None, 42.6)),
    "xMUDA-VFM-Fuse": ((None, None, 73.4), (None, None, None), (None, None, None), (None, None, 61.4)),
    "Ours": ((74.4, 67.9, 75.4), (67.9, 68.1, 70.3), (70.1, 64.5, 70.7), (60.3, 54.9, 63.1)),
    "Ours PL": ((76.1, 70.5, 76.2), (69.2, 69.0, 70.4), (72.1, 68.6, 72.1), (62.3, 57.8, 63.3)),
}
PAPER_TABLE: dict[str, dict[str, Columns]] = {
    row: dict(zip(SHIFTS, columns, strict=True)) for row, columns in _ROWS.items()
}
# Table 2: the fused row names of recipes/methods, on the two shifts that it has.
PAPER_ABLATION: dict[str, dict[str, Columns]] = {
    "vanilla": {"nuscenes_day_night": (64.8, 68.9, 68.3), "virtual_kitti_semantic_kitti": (68.3, 61.1, 68.5)},
    "vanilla_guidance": {"nuscenes_day_night": (64.3, 67.8, 67.8), "virtual_kitti_semantic_kitti": (68.8, 64.2, 69.7)},
    "mlp": {"nuscenes_day_night": (65.9, 67.5, 68.8), "virtual_kitti_semantic_kitti": (69.7, 63.2, 69.2)},
    "mlp_symal": {"nuscenes_day_night": (66.1, 67.5, 68.9), "virtual_kitti_semantic_kitti": (69.9, 64.0, 69.9)},
    "ours": {"nuscenes_day_night": (67.9, 68.1, 70.3), "virtual_kitti_semantic_kitti": (70.1, 64.5, 70.7)},
}


def published(method: str, shift: str) -> Columns | None:
    """mIoU (2D, 3D, 2D3D) that the paper gives for a method of recipes/methods on a shift; None where it gives none."""
    for row, known in METHOD_OF_ROW.items():
        if known == method and shift in PAPER_TABLE[row]:
            columns = PAPER_TABLE[row][shift]
            return columns if any(value is not None for value in columns) else None
    return PAPER_ABLATION.get(method, {}).get(shift)


def others_markdown(shifts: Sequence[str]) -> str:
    """Published rows of methods that are not built here, as a table; empty where the paper has none of the shifts."""
    known = [shift for shift in shifts if shift in SHIFTS]
    if not known:
        return ""
    header = [f"{shift} {column}" for shift in known for column in ("2D", "3D", "2D3D")]
    lines = ["| published elsewhere | " + " | ".join(header) + " |", "|---|" + "---|" * len(header)]
    for row, method in METHOD_OF_ROW.items():
        if method is None:
            values = [value for shift in known for value in PAPER_TABLE[row][shift]]
            lines.append(
                f"| {row} | " + " | ".join("-" if value is None else f"{value:.1f}" for value in values) + " |"
            )
    return "\n".join(lines)
