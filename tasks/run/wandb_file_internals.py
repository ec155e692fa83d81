"""The file of an offline W&B run: a log of records that `wandb sync` replays.

wandb has no public API that changes a finished offline run. The format is LevelDB's log format:
blocks of 32 KiB, in which each chunk has a checksum, a length and a kind; a record is one chunk, or
several if it crosses the end of a block.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.run.wandb_internals import wandb_internal_pb2

# Its classes are created at runtime.
Record: Any = getattr(wandb_internal_pb2, "Record")  # noqa: B009
HEADER = b":W&B\xe1\xbe\x00"
BLOCK = 32 * 1024
CHUNK = struct.Struct("<IHB")
# Kinds of chunks: a whole record, or the first, a middle or the last chunk of one.
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read_records(file: Path) -> list[bytes]:
    """Read the records of a run's file; one that was cut off at the end is left out.

    Raises:
        ValueError: The file has another format.
    """
    content = file.read_bytes()
    if not content.startswith(HEADER):
        raise ValueError(f"{file} is not the file of a W&B run")
    records = []
    record = b""
    position = len(HEADER)
    while position + CHUNK.size <= len(content):
        left = BLOCK - position % BLOCK
        if left < CHUNK.size:
            # The end of a block that is too short for a chunk is padding.
            position += left
            continue
        checksum, length, kind = CHUNK.unpack_from(content, position)
        start = position + CHUNK.size
        data = content[start : start + length]
        position = start + length
        if len(data) < length:
            break
        if checksum != zlib.crc32(bytes([kind]) + data):
            raise ValueError(f"{file} is damaged at byte {start}")
        record = data if kind in (WHOLE, FIRST) else record + data
        if kind in (WHOLE, LAST):
            records.append(record)
    return records


def _chunks(records: list[bytes]) -> Iterator[bytes]:
    yield HEADER
    position = len(HEADER)
    for record in records:
        first = True
        while True:
            left = BLOCK - position % BLOCK
            if left < CHUNK.size:
                yield bytes(left)
                position += left
                left = BLOCK
            data, record = record[: left - CHUNK.size], record[left - CHUNK.size :]
            last = not record
            kind = (WHOLE if last else FIRST) if first else (LAST if last else MIDDLE)
            yield CHUNK.pack(zlib.crc32(bytes([kind]) + data), len(data), kind) + data
            position += CHUNK.size + len(data)
            first = False
            if last:
                break


def _parsed(record: bytes) -> Any:
    parsed = Record()
    parsed.ParseFromString(record)
    return parsed


def _names(item: Any) -> list[str]:
    return list(item.nested_key) or [item.key]


def set_summary(file: Path, prefix: str, values: Mapping[str, float]) -> bool:
    """Replace all summary values of a finished offline run whose names start with a prefix.

    The file is replaced atomically. All other records stay as they are.

    Args:
        file: `run-ID.wandb` in the folder of an offline run.
        prefix: Start of the names; earlier values with such names are removed.
        values: The values by their full names.

    Returns:
        False if the run is not finished: its file is still being written, or was never completed.

    Raises:
        ValueError: The file has another format.
    """
    records = read_records(file)
    parsed = [_parsed(record) for record in records]
    if not parsed or parsed[-1].WhichOneof("record_type") != "exit":
        return False
    new = Record(num=parsed[-1].num)
    for name, value in values.items():
        new.summary.update.add(nested_key=[name], value_json=json.dumps(value))
    kept = [
        record
        for record, content in zip(records, parsed, strict=True)
        if not (
            content.summary.update
            and all(_names(item)[0].startswith(prefix) for item in content.summary.update)
        )
    ]
    # Behind the exit record, `wandb sync` reads no further.
    changed = [*kept[:-1], new.SerializeToString(deterministic=True), kept[-1]]
    if changed != records:
        partial = file.with_suffix(".partial")
        with partial.open("wb") as target:
            target.writelines(_chunks(changed))
            target.flush()
            os.fsync(target.fileno())
        partial.replace(file)
    return True
