# SPDX-License-Identifier: Apache-2.0
"""Print versions, devices, and what a checkpoint holds: its classes, settings, banks, and whether it was trained."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from xmodal_seg.commands.bag_arguments import add_checkpoint_argument
from xmodal_seg.commands.environment import devices, versions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint_argument(parser)
    parser.add_argument("--json", action="store_true", help="everything, for programs")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="xmodal-seg info", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(argv))


def run(arguments: argparse.Namespace) -> int:
    from xmodal_seg.devices import unused_gpu

    found = {
        "versions": versions(),
        "devices": devices(),
        "unused_gpu": unused_gpu(),
        "checkpoint": describe_checkpoint(arguments.checkpoint),
    }
    print(json.dumps(found, indent=2) if arguments.json else _as_text(found))
    return 0


def describe_checkpoint(path: str | None) -> dict[str, Any]:
    """What `path` holds (None: the shipped checkpoint; the untrained model if none is shipped)."""
    from xmodal_seg.checkpoint import SHIPPED_CHECKPOINTS, load_checkpoint
    from xmodal_seg.inference import DEFAULT_CHECKPOINT, untrained_settings
    from xmodal_seg.labels import NUSCENES_6

    if path is None and DEFAULT_CHECKPOINT not in SHIPPED_CHECKPOINTS:
        return {
            "path": None,
            "trained": False,
            "version": "untrained",
            "label_space": {"name": NUSCENES_6.name, "class_names": list(NUSCENES_6.class_names)},
            "banks": ["untrained"],
            "metadata": {},
            "settings": untrained_settings().model_dump(mode="json"),
        }
    checkpoint = load_checkpoint(path or DEFAULT_CHECKPOINT)
    return {
        "path": str(checkpoint.path),
        "trained": bool(checkpoint.metadata.get("trained", False)),
        "version": checkpoint.content_hash[:12],
        "label_space": {
            "name": checkpoint.label_space.name,
            "class_names": list(checkpoint.label_space.class_names),
        },
        "banks": sorted(checkpoint.banks),
        "default_bank": checkpoint.default_bank,
        "metadata": checkpoint.metadata,
        "written_with": checkpoint.versions,
        "settings": checkpoint.settings.model_dump(mode="json"),
    }


def _as_text(found: dict[str, Any]) -> str:
    checkpoint = found["checkpoint"]
    settings = checkpoint["settings"]
    trained = "trained" if checkpoint["trained"] else "UNTRAINED: its labels mean nothing"
    facts = {
        "checkpoint": f"{checkpoint['path'] or 'none shipped; a small model with random weights serves'}",
        "version": f"{checkpoint['version']} ({trained})",
        "classes": f"{checkpoint['label_space']['name']}: {', '.join(checkpoint['label_space']['class_names'])}",
        "banks": ", ".join(checkpoint["banks"]),
        "image network": settings["image_backbone"]["name"],
        "heads": ", ".join(settings["heads"]["main"]),
        "voxel size": f"{settings['preprocess']['voxel_size']:g} m",
    }
    banks = checkpoint["metadata"].get("banks")
    if isinstance(banks, dict):
        facts |= {f"bank {name}": _origin(bank) for name, bank in banks.items() if isinstance(bank, dict)}
    about = checkpoint["metadata"].get("image_backbone", {})
    facts |= {
        name: about[key] for key, name in (("what", "what it is"), ("what_not", "what it is not")) if key in about
    }
    lines = [f"{name:<24}{version}" for name, version in found["versions"].items()]
    for device in found["devices"]:
        details = ", ".join(f"{key} {value}" for key, value in device.items() if key not in ("device", "name"))
        lines.append(f"{device['device']:<24}{device['name']} ({details})")
    if found["unused_gpu"]:
        lines.append(found["unused_gpu"])
    return "\n".join(lines + [f"{name:<24}{value}" for name, value in facts.items()])


def _origin(bank: dict[str, Any]) -> str:
    """How a bank came to be, as far as its checkpoint says; metadata may hold anything."""
    words = []
    if "method" in bank and "shift" in bank:
        words.append(f"{bank['method']} on {bank['shift']}")
    if "steps" in bank:
        words.append(f"{bank['steps']} steps")
    if "guidance" in bank:
        words.append(f"lambda {bank['guidance']:g}")
    if "test_mean_iou" in bank:
        words.append(f"mIoU there {_scores(bank['test_mean_iou'])}")
    return ", ".join(words) or "not said"


def _scores(miou: dict[str, float]) -> str:
    """Percent by head."""
    return ", ".join(f"{head} {value:.1f} %" for head, value in miou.items())
