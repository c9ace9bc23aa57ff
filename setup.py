"""Packaging for colcon (ament_python) and pip.

Metadata lives here only: a [project] table in pyproject.toml leaves colcon without executables.
"""

from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = "xmodal_seg"
# colcon build --symlink-install runs a link to this file in a folder that lacks the README.
ROOT = Path(__file__).resolve().parent
# One by one: "**" reaches no deeper folder before setuptools 62.3, and Ubuntu 22.04 has 59.6.
ASSETS = [
    str(path.relative_to(ROOT / PACKAGE)) for path in sorted((ROOT / PACKAGE / "assets").rglob("*")) if path.is_file()
]

CORE = [
    "numpy>=1.23",
    "torch>=2.3",
    # CPU and GPU; the newest spconv-cu120 wheels are for Python 3.11, so Ubuntu 24.04 (Jazzy, Kilted) takes cu126.
    # There are none for ARM: on a Jetson spconv is built from source, and a requirement of these would be in its way.
    'spconv-cu120>=2.3.6; python_version < "3.12" and platform_machine != "aarch64"',
    'spconv-cu126>=2.3.8; python_version >= "3.12" and platform_machine != "aarch64"',
    "timm>=1.0.31",  # the first with C-RADIO
    "opencv-python-headless>=4.10",
    "safetensors>=0.4.3",
    "pydantic>=2.7",
    "annotated-types>=0.6",  # the bounds of a pydantic field, read for the parameter descriptors
    "PyYAML>=6.0",
    "rich>=13.0",
    "rosbags>=0.10.6",
    "matplotlib>=3.7",
]

EXTRAS = {
    # rclpy and the messages as wheels, for machines without a ROS installation.
    "pip-ros": [
        "ros-rclpy[fastrtps]>=9.1",
        "ros-sensor-msgs",
        "ros-std-msgs",
        "ros-std-srvs",
        "ros-diagnostic-msgs",
        "ros-geometry-msgs",
        "ros-lifecycle-msgs",
        "ros-rosgraph-msgs",
    ],
    "sim": ["embreex>=2.17.7.post5", "pillow>=9.5"],
    "train": ["lightning-fabric>=2.3", "tensorboard>=2.15"],
    "radio": ["einops>=0.7"],
    "sun": ["astral>=3.2"],  # the sun's elevation as a prior of the lighting estimate
    "viz": ["rerun-sdk>=0.24"],
    # pytest 9 breaks ROS's launch_testing plugin, which every sourced ROS environment loads.
    "test": ["pytest>=7.4,<9", "hypothesis>=6.90", "torchmetrics>=1.4"],
    "dev": [
        "pytest>=7.4,<9",
        "hypothesis>=6.90",
        "torchmetrics>=1.4",  # what our metrics are compared with
        "ruff>=0.6",
        "mypy>=1.10",
        "types-PyYAML",
        "psutil>=5.9",
        "uv>=0.5",
    ],
}

setup(
    name=PACKAGE,
    version="0.1.0",
    description="Camera-LiDAR semantic segmentation that adapts to new places and light, for ROS 2 and offline",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="xmodal_seg developers",
    maintainer="xmodal_seg developers",
    maintainer_email="xmodal-seg@users.noreply.github.com",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    package_data={PACKAGE: ["py.typed", *ASSETS]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        (f"share/{PACKAGE}/launch", glob("launch/*.launch.py")),
        (f"share/{PACKAGE}/config/nodes", glob("config/nodes/*.yaml")),
        (f"share/{PACKAGE}/config/rviz", glob("config/rviz/*.rviz")),
        (f"share/{PACKAGE}/config/foxglove", glob("config/foxglove/*.json")),
    ],
    install_requires=["setuptools", *CORE],
    extras_require=EXTRAS,
    zip_safe=False,
    entry_points={
        "console_scripts": [
            "segmentation_node = xmodal_seg.nodes.entry:segmentation_node",
            "lighting_node = xmodal_seg.nodes.entry:lighting_node",
            "play_bag_node = xmodal_seg.nodes.entry:play_bag_node",
            "xmodal-seg = xmodal_seg.commands.main:main",
        ],
    },
)
