# SPDX-License-Identifier: Apache-2.0
"""rosbag2 folders in and out, message by message, without a ROS installation (rosbags).

Only message definitions that ship with rosbags are decoded; they have not changed from Humble to Kilted. All other
topics can still be read and written as raw CDR bytes.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

logger = logging.getLogger(__name__)

Storage = Literal["mcap", "sqlite3"]
# Version 9 writes the offered QoS in a form that Humble and Jazzy cannot read.
_BAG_VERSION: Literal[8] = 8


@dataclass(frozen=True, kw_only=True)
class Topic:
    """What a bag says about one topic."""

    name: str
    msgtype: str  # such as sensor_msgs/msg/PointCloud2
    num_messages: int
    latched: bool  # recorded as transient_local
    depth: int  # of the recorded QoS, 0 if it was not recorded


@dataclass(frozen=True, kw_only=True)
class RawMessage:
    """One message as recorded."""

    topic: str
    msgtype: str
    stamp_ns: int  # when it was recorded; the header has its own stamp
    data: bytes  # CDR

    def decode(self) -> Any:
        """The message object. Raises ValueError for an unknown type and for bytes that do not decode."""
        if self.msgtype not in typestore().fielddefs:
            raise ValueError(f"{self.topic}: messages of type {self.msgtype} are not known here")
        try:
            return typestore().deserialize_cdr(self.data, self.msgtype)
        except Exception as error:  # the decoder meets arbitrary bytes and raises whatever they lead it to
            raise ValueError(f"{self.topic}: a message does not decode as {self.msgtype} ({error})") from error


class Bag:
    """An open bag; made by `open_bag`."""

    def __init__(self, *, path: Path, reader: Reader) -> None:
        self.path = path
        self._reader = reader
        self.topics: dict[str, Topic] = _merge_connections(reader.connections)
        self.num_messages: int = reader.message_count
        self.start_ns: int = reader.start_time if reader.message_count else 0
        self.end_ns: int = reader.end_time if reader.message_count else 0

    def messages(self, topics: Collection[str] | None = None, *, start_ns: int | None = None) -> Iterator[RawMessage]:
        """Messages of `topics` (None: all) recorded at or after `start_ns`, in recorded order.

        Raises ValueError for a topic that the bag lacks, and where the file is damaged.
        """
        for name in topics or ():
            self.require(name)
        wanted = [c for c in self._reader.connections if topics is None or c.topic in topics]
        if not wanted:  # rosbags takes an empty choice for "everything"
            return
        messages = self._reader.messages(wanted, start=start_ns)
        missing = sum(connection.msgcount for connection in wanted)
        while True:
            try:
                connection, stamp_ns, data = next(messages)
            except StopIteration:
                if missing > 0 and start_ns is None:
                    logger.warning("bag %s: %d messages fewer than its metadata says", self.path, missing)
                return
            except Exception as error:  # a damaged file fails in the parser, the decompressor or the database
                raise ValueError(f"bag {self.path} is damaged or cut off: {_reason(error)}") from error
            missing -= 1
            yield RawMessage(topic=connection.topic, msgtype=connection.msgtype, stamp_ns=stamp_ns, data=data)

    def require(self, topic: str, msgtypes: Collection[str] = ()) -> Topic:
        """The topic named; ValueError listing those that exist if it is missing or not one of `msgtypes`."""
        if topic not in self.topics:
            raise ValueError(f"bag {self.path} has no topic {topic}; it has {self.describe_topics()}")
        found = self.topics[topic]
        if msgtypes and found.msgtype not in msgtypes:
            raise ValueError(f"bag {self.path}: {topic} is {found.msgtype}, expected {' or '.join(msgtypes)}")
        return found

    def describe_topics(self) -> str:
        """One line with every topic and its type."""
        return ", ".join(f"{topic.name} ({topic.msgtype})" for topic in self.topics.values()) or "no topics"


@contextmanager
def open_bag(path: str | Path) -> Iterator[Bag]:
    """Open a rosbag2 folder or a single .mcap or .db3 file.

    Raises ValueError for a path that does not exist, is no bag, or cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"no bag at {path}: no such file or folder")
    if path.is_dir() and not (path / "metadata.yaml").is_file():
        inside = sorted(file.name for file in path.iterdir() if file.suffix in (".mcap", ".db3"))
        hint = f"; it holds {', '.join(inside)}: give that file, or run `ros2 bag reindex`" if inside else ""
        raise ValueError(f"{path} is not a rosbag2 folder: no metadata.yaml in it{hint}")
    reader = None
    try:
        reader = Reader(path)
        reader.open()
    except Exception as error:  # rosbags raises its own errors for some faults and the parser's for the rest
        raise ValueError(f"{path} cannot be read as a rosbag2: {_reason(error)}") from error
    try:
        yield Bag(path=path, reader=reader)
    finally:
        reader.close()


class BagWriter:
    """Writes a bag that appears under its name only when it is complete.

    Use as a context manager: everything goes into a temporary folder beside `path`, which takes the name at the end
    and is deleted if an exception ends the block. Raises ValueError if `path` exists, unless `overwrite` is set; then
    a bag (nothing else) is replaced.
    """

    def __init__(self, path: str | Path, *, storage: Storage = "mcap", overwrite: bool = False) -> None:
        self.path = Path(path)
        if storage not in ("mcap", "sqlite3"):
            raise ValueError(f"storage: expected mcap or sqlite3, got {storage!r}")
        self._plugin = StoragePlugin[storage.upper()]
        if self.path.exists():
            if not overwrite:
                raise ValueError(f"{self.path} exists already; choose another name or ask to overwrite it")
            if not (self.path / "metadata.yaml").is_file():
                raise ValueError(f"{self.path} exists and is not a bag, so it is not overwritten")
        self._connections: dict[tuple[str, str], Connection] = {}

    def __enter__(self) -> BagWriter:
        parent = self.path.absolute().parent
        parent.mkdir(parents=True, exist_ok=True)
        self._temporary = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=parent))
        self._writer = Writer(self._temporary / self.path.name, version=_BAG_VERSION, storage_plugin=self._plugin)
        self._writer.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                self._writer.abort()
                return
            self._writer.close()
            if self.path.exists():
                self.path.rename(self._temporary / "replaced")
            (self._temporary / self.path.name).rename(self.path)
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def write(self, topic: str, stamp_ns: int, message: Any, *, latched: bool = False) -> None:
        """Write a rosbags message object."""
        msgtype = message.__msgtype__
        data = typestore().serialize_cdr(message, msgtype)
        self.write_raw(topic, msgtype, stamp_ns, data, latched=latched)

    def write_raw(
        self, topic: str, msgtype: str, stamp_ns: int, data: bytes | memoryview, *, latched: bool = False
    ) -> None:
        """Write CDR bytes. Raises ValueError for a type whose definition is not known."""
        if (topic, msgtype) not in self._connections:
            if msgtype not in typestore().fielddefs:
                raise ValueError(f"{topic}: cannot write {msgtype}, its definition is not known here")
            self._connections[topic, msgtype] = self._writer.add_connection(
                topic, msgtype, typestore=typestore(), offered_qos_profiles=[_qos(latched)]
            )
        self._writer.write(self._connections[topic, msgtype], stamp_ns, data)


@lru_cache(maxsize=1)
def typestore() -> Typestore:
    """Message definitions and codecs."""
    return get_typestore(Stores.ROS2_HUMBLE)


def _merge_connections(connections: list[Connection]) -> dict[str, Topic]:
    """Several publishers of one topic are one topic."""
    topics: dict[str, Topic] = {}
    for connection in connections:
        profiles = connection.ext.offered_qos_profiles  # type: ignore[union-attr]
        before = topics.get(connection.topic)
        topics[connection.topic] = Topic(
            name=connection.topic,
            msgtype=connection.msgtype,
            num_messages=connection.msgcount + (before.num_messages if before else 0),
            # Recorders that leave the QoS out do not make transforms any less lasting.
            latched=connection.topic == "/tf_static"
            or any(profile.durability == QosDurability.TRANSIENT_LOCAL for profile in profiles)
            or (before is not None and before.latched),
            depth=max([profile.depth for profile in profiles] + [before.depth if before else 0]),
        )
    return topics


def _qos(latched: bool) -> Qos:
    forever = QosTime(2147483647, 4294967295)
    return Qos(
        history=QosHistory.KEEP_LAST,
        depth=10,
        reliability=QosReliability.RELIABLE,
        durability=QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        deadline=forever,
        lifespan=forever,
        liveliness=QosLiveliness.AUTOMATIC,
        liveliness_lease_duration=forever,
        avoid_ros_namespace_conventions=False,
    )


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
