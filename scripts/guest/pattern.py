"""The blocks that disk-io.c writes in the guest, as the host expects them in the image."""

import struct
from pathlib import Path
from typing import BinaryIO, Dict

from harness import Failure

BLOCK_SIZE = 4096
WORDS = BLOCK_SIZE // 8
WORD_STEP = 0x9E3779B97F4A7C15
WORD_MASK = (1 << 64) - 1
STEPS = [index * WORD_STEP & WORD_MASK for index in range(WORDS)]


def expected_block(block: int, stamp: int) -> bytes:
    first = stamp << 32 | block
    return struct.pack(f"<{WORDS}Q", *[first + step & WORD_MASK for step in STEPS])


def _read_block(image: BinaryIO, block: int) -> bytes:
    image.seek(block * BLOCK_SIZE)
    return image.read(BLOCK_SIZE)


def check_image(path: Path, start: int, blocks: int, stamp: int) -> None:
    """Every block is there, whole, with this stamp."""
    with path.open("rb") as image:
        for block in range(start, start + blocks):
            if _read_block(image, block) != expected_block(block, stamp):
                raise Failure(f"block {block} of the image is not what the guest wrote with stamp {stamp}")


def check_churn(path: Path, threads: int, blocks: int, flushed: Dict[int, int]) -> int:
    """
    After `disk-io churn`: every write that the guest was told is flushed is in the image, or a
    later one to the same block is. Returns the number of blocks checked.
    """
    share = blocks // threads
    checked = 0
    with path.open("rb") as image:
        for thread, writes in flushed.items():
            for write in range(max(0, writes - share), writes):
                block = thread * share + write % share
                _check_churned(_read_block(image, block), block, write, share)
                checked += 1
    return checked


def _check_churned(data: bytes, block: int, write: int, share: int) -> None:
    stamp = struct.unpack_from("<Q", data)[0] >> 32
    if data != expected_block(block, stamp):
        raise Failure(f"block {block} is torn or foreign (stamp {stamp})")
    if stamp < write or (stamp - write) % share != 0:
        raise Failure(f"block {block} has write {stamp}, but write {write} was flushed")
