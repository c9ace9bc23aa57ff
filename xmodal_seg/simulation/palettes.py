# SPDX-License-Identifier: Apache-2.0
"""Colours of a place. They are written as sRGB hex and used as linear reflectance."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from xmodal_seg.config import Settings
from xmodal_seg.simulation.dice import Dice
from xmodal_seg.simulation.meshes import Colour

PAINTS = ("d8d8d6", "8f9194", "26282b", "16171a", "5b6066", "7c1c1c", "1f3a68", "b9b4a6", "3f5247", "e6e6e4", "9a3b1c")
CLOTHS = ("22262e", "3b4a63", "6b6f75", "8a2f2b", "d6d2c8", "2f4a3a", "b58b4c", "5a3a63", "101114", "c7573b")
SKINS = ("e0b697", "c69373", "9a6a4b", "6d4630", "f0cdb2")


def linear(code: str) -> Colour:
    """sRGB hex, such as "8f9194", as linear reflectance."""
    value = np.array([int(code[i : i + 2], 16) for i in (0, 2, 4)]) / 255.0
    red, green, blue = np.round(np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4), 5)
    return float(red), float(green), float(blue)


class Palette(Settings):
    """Colours (sRGB hex) of everything whose colour tells one place from another."""

    asphalt: tuple[str, ...] = ("6a6a6c",)
    parking: tuple[str, ...] = ("767472",)
    paving: tuple[str, ...] = ("a39f98",)
    curb: tuple[str, ...] = ("b5b2ab",)
    grass: tuple[str, ...] = ("5f7a3a",)
    soil: tuple[str, ...] = ("7d6a50",)
    facades: tuple[str, ...] = ("b9a88f", "a65f48", "cfc6b4", "8d8c88")
    roofs: tuple[str, ...] = ("5a4a44", "6b3a2d", "4a4d52")
    walls: tuple[str, ...] = ("a8a196", "8a5a48")
    fences: tuple[str, ...] = ("6b5a45", "3a3f42")
    leaves: tuple[str, ...] = ("41622a", "567a35", "365528")
    bark: str = "5b4a3a"
    poles: str = "777a7c"
    centre_line: str = "e8e6df"
    edge_line: str = "e8e6df"
    cars: tuple[str, ...] = PAINTS
    cloths: tuple[str, ...] = CLOTHS
    skins: tuple[str, ...] = SKINS
    contrast: float = Field(default=1.0, gt=0, description="strength of the procedural texture")


USA = Palette(
    asphalt=("5d5e61", "66666a"),
    parking=("65656a",),
    paving=("b3aea4", "aaa59c"),
    grass=("66783c", "7a8044"),
    soil=("8a7355",),
    facades=("9a4f3c", "b06a4e", "c9bda8", "8f8578", "d9d2c3", "7c4436"),
    roofs=("4a4644", "5a5450"),
    walls=("9a5a48", "a9a299"),
    leaves=("45652c", "5b7a34", "7a8a3a"),
    centre_line="d8a72c",
)
SINGAPORE = Palette(
    asphalt=("77777a", "6f7072"),
    parking=("86827c",),
    paving=("a79a8d", "b08f7c"),
    curb=("c9c5bb",),
    grass=("3f7a2c", "4b8a34"),
    soil=("8c5f3e",),
    facades=("e3ddcf", "d5c49a", "b7c4c4", "efe9df", "c99b7e", "93a3ad"),
    roofs=("8a4a34", "8d8f90"),
    walls=("d8d3c6", "bfb8a8"),
    fences=("3f6a4a", "8d9496"),
    leaves=("2c5f22", "357028", "24521f"),
    bark="6b6050",
    centre_line="f0efe8",
)
GERMANY = Palette(
    asphalt=("707274", "7a7a7a"),
    parking=("8b837a", "7c7c7a"),
    paving=("a6a5a1", "9b9893"),
    curb=("a5a4a0",),
    grass=("5a7d36", "6b8a40"),
    facades=("e6dcc4", "d9c08e", "cfd0cc", "e0e0da", "b8785c", "c9b8a0"),
    roofs=("8a4634", "7a3f30", "54504e"),
    walls=("b8b2a5", "8f8a80"),
    fences=("6e5a42", "50605a"),
    leaves=("4a6e2c", "5a8034", "3c5a26"),
)
VIRTUAL = Palette(
    asphalt=("4f5256",),
    parking=("5a5c60",),
    paving=("8d8576",),
    curb=("9a958a",),
    grass=("6d8f35", "7aa03c"),
    soil=("7a6848",),
    facades=("c9a97a", "b0835a", "d8cba8", "9c9c94"),
    roofs=("9c4a34",),
    leaves=("3d7a20", "4f8f28"),
    cars=("c01818", "1840a0", "e8e8e8", "202020", "d8a810", "208838", "7a7a7a"),
    contrast=1.6,
)
INGOLSTADT = Palette(
    asphalt=("68696b", "5c5e60"),
    parking=("75706a",),
    paving=("938f89", "a09a90"),
    grass=("56703a", "62763c"),
    soil=("7a6a54",),
    facades=("dcd8ce", "c8b48c", "b4b8bc", "e8e2d2", "a8705a", "90989c"),
    roofs=("6a3a2e", "4c4c50", "7c4a3a"),
    leaves=("48622e", "557038", "6a7a3a"),
)
DEV_A = Palette(
    asphalt=("64666a",),
    paving=("aaa69e", "9f9a92"),
    grass=("64803c",),
    facades=("a8644c", "c6b9a2", "8f8a82", "b98a66"),
    leaves=("4a6a2e", "5a7a38"),
    centre_line="d8b040",
)
DEV_B = Palette(
    asphalt=("7c7a76",),
    parking=("8a8780",),
    paving=("9a8474", "b09a86"),
    grass=("4a7a34",),
    soil=("8a6a48",),
    facades=("e4dcc8", "b0bcc0", "d4b88c", "c8c8c4"),
    roofs=("8a5040",),
    leaves=("305a26", "3c6a2c"),
)


def _hex(dice: Dice, hue: tuple[float, float], saturation: tuple[float, float], value: tuple[float, float]) -> str:
    h, s, v = dice.between(hue) % 1.0, dice.between(saturation), dice.between(value)
    sector, rest = divmod(6 * h, 1.0)
    low, fall, rise = v * (1 - s), v * (1 - s * rest), v * (1 - s * (1 - rest))
    rgb = ((v, rise, low), (fall, v, low), (low, v, rise), (low, fall, v), (rise, low, v), (v, low, fall))[
        int(sector) % 6
    ]
    return "".join(f"{round(255 * channel):02x}" for channel in rgb)


def random_palette(dice: Dice) -> Palette:
    """A palette drawn from wide ranges, for the randomised worlds of pre-training."""

    def several(number: int, *ranges: tuple[float, float]) -> tuple[str, ...]:
        return tuple(_hex(dice, ranges[0], ranges[1], ranges[2]) for _ in range(number))

    grey, any_hue = (0.0, 0.10), (0.0, 1.0)
    return Palette(
        asphalt=several(2, any_hue, (0.0, 0.08), (0.28, 0.58)),
        parking=several(2, any_hue, grey, (0.30, 0.66)),
        paving=several(2, (0.0, 0.14), (0.02, 0.30), (0.42, 0.82)),
        curb=several(1, (0.0, 0.14), (0.0, 0.15), (0.5, 0.85)),
        grass=several(2, (0.16, 0.34), (0.3, 0.7), (0.3, 0.62)),
        soil=several(1, (0.05, 0.12), (0.2, 0.5), (0.35, 0.62)),
        facades=several(6, any_hue, (0.02, 0.5), (0.35, 0.95)),
        roofs=several(3, any_hue, (0.05, 0.6), (0.25, 0.6)),
        walls=several(2, (0.0, 0.15), (0.02, 0.45), (0.4, 0.8)),
        fences=several(2, any_hue, (0.05, 0.4), (0.2, 0.7)),
        leaves=several(3, (0.14, 0.36), (0.35, 0.75), (0.25, 0.58)),
        bark=_hex(dice, (0.05, 0.12), (0.1, 0.4), (0.25, 0.5)),
        poles=_hex(dice, any_hue, (0.0, 0.25), (0.25, 0.75)),
        centre_line=dice.choice(("e8e6df", "d8a72c", "e0c050")),
        cars=several(8, any_hue, (0.0, 0.9), (0.06, 0.92)),
        cloths=several(8, any_hue, (0.0, 0.8), (0.08, 0.9)),
        contrast=dice.uniform(0.6, 1.8),
    )
