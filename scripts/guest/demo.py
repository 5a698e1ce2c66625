#!/usr/bin/python3 -B
"""
Shows a Linux guest at work on a disk that vu-blk serves.
Usage: demo.py GUEST-DIRECTORY
"""

import hashlib
import sys
import tempfile
from pathlib import Path
from typing import List

from backend import Backend
from harness import Failure, exit_on_signals, tail
from machine import Machine
from pattern import BLOCK_SIZE, check_image

QUEUES = 2
MIB = 1 << 20
IMAGE_SIZE = 256 * MIB
DATA_SIZE = 64 * MIB
DATA_BLOCKS = DATA_SIZE // BLOCK_SIZE
STAMP = 2026


def say(who: str, text: str) -> None:
    print(f"{who:<6} {text}", flush=True)


def speed(seconds: float) -> str:
    return f"{DATA_SIZE / MIB / seconds:.0f} MiB/s"


def image_digest(image: Path) -> str:
    with image.open("rb") as data:
        return hashlib.sha256(data.read(DATA_SIZE)).hexdigest()


def use_disk(backend: Backend, machine: Machine) -> None:
    say("guest", f"Linux {machine.kernel_version} is up after {machine.boot_seconds:.1f} s (QEMU, emulated CPUs)")
    disk = machine.probe_disk()
    if disk.get("sectors") != str(IMAGE_SIZE // 512) or disk.get("queues") != str(QUEUES):
        raise Failure(f"the guest sees another disk: {disk}")
    say("guest", f"/dev/vda: {IMAGE_SIZE // MIB} MiB, {QUEUES} queues, cache {disk['cache']}")

    seconds = machine.write(0, DATA_BLOCKS, STAMP)
    say("guest", f"wrote {DATA_SIZE // MIB} MiB on both queues and flushed: {speed(seconds)}")
    machine.run("drop_caches")
    seconds = machine.verify(0, DATA_BLOCKS, STAMP)
    say("guest", f"read it back past its caches, every byte as written: {speed(seconds)}")

    digest = dict(machine.run(f"digest {DATA_SIZE // MIB}"))["sha256"]
    say("guest", f"sha256 of the disk   {digest}")
    check_image(backend.image, 0, DATA_BLOCKS, STAMP)
    if image_digest(backend.image) != digest:
        raise Failure(f"sha256 of the image is {image_digest(backend.image)}")
    say("host", f"sha256 of the image  {digest}")

    machine.shut_down()
    say("guest", "powered off")


def demonstrate(guest: Path, directory: Path) -> None:
    with Backend(directory, IMAGE_SIZE, QUEUES) as backend:
        backend.wait_listening()
        say("host", f"{backend.program} serves a scratch image of {IMAGE_SIZE // MIB} MiB on {QUEUES} queues")
        with Machine(guest, directory, backend.socket, QUEUES, backend.check_running) as machine:
            use_disk(backend, machine)
        seconds = backend.terminate()
        say("host", f"{backend.program} ended {seconds * 1000:.0f} ms after SIGTERM with status 0, its socket is gone")


def main(arguments: List[str]) -> int:
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    exit_on_signals()
    with tempfile.TemporaryDirectory(prefix="vu-demo-") as name:
        directory = Path(name)
        try:
            demonstrate(Path(arguments[0]), directory)
        except Failure as failure:
            for log in sorted(directory.glob("*.log")):
                print(f"--- {log.name}\n{tail(log)}", file=sys.stderr)
            print(f"demo: FAILED: {failure}", file=sys.stderr)
            return 1
    print("demo: the guest's disk works")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
