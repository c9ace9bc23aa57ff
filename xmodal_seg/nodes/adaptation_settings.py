# SPDX-License-Identifier: Apache-2.0
"""Parameters `adaptation.*` of the segmentation node."""

from __future__ import annotations

from pydantic import Field

from xmodal_seg.adaptation.settings import DYNAMIC, AdaptationSettings, WrittenMode


class NodeAdaptationSettings(AdaptationSettings):
    """Those of the adapter, and where the node finds what belongs to it."""

    mode: WrittenMode = Field(
        default="select",
        json_schema_extra=DYNAMIC,
        description="off: the bank that serves stays; select: banks follow lighting_topic; shadow: also learns and "
        "reports, serves nothing of it; on: also serves what passes the gate",
    )
    state_folder: str = Field(
        default="", description="folder that keeps what was learned, taken up again at start; empty: it is forgotten"
    )
    labelled_frames: str = Field(
        default="",
        description="folder of labelled frames that the gate judges by too, beside frames held out of the drive; "
        "empty: those in the checkpoint's folder labelled_frames, if any",
    )

    @property
    def learns(self) -> bool:
        return self.mode in ("shadow", "on")
