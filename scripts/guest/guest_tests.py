#!/usr/bin/python3 -B
"""
Tests of the block back-end with a Linux guest under QEMU.
Usage: guest_tests.py GUEST-DIRECTORY [TEST ...]

Prints one line a test, "ok NAME" or "FAIL NAME: REASON"; the status is 0 when all passed.
"""

import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Tuple

from backend import Backend
from harness import Failure, tail
from machine import Machine, Report
from pattern import BLOCK_SIZE, check_churn, check_image
from runner import run_tests

QUEUES = 4
MIB = 1 << 20
SECTOR = 512
IMAGE_SIZE = 64 * MIB
GROWN_SIZE = 96 * MIB
ALL_BLOCKS = IMAGE_SIZE // BLOCK_SIZE
FEW_BLOCKS = 1024
HOTPLUG_ROUNDS = 6
REBOOTS = 2
CHURN_WRITES = 512
CHURN_SECONDS = 60


@contextmanager
def guest_with_disk(guest: Path, packed: bool) -> Iterator[Tuple[Backend, Machine]]:
    """A booted guest that sees its disk; on failure the logs of both sides are printed."""
    with tempfile.TemporaryDirectory(prefix="vu-guest-") as name:
        directory = Path(name)
        try:
            with Backend(directory, IMAGE_SIZE, QUEUES) as backend:
                backend.wait_listening()
                with Machine(guest, directory, backend.socket, QUEUES, backend.check_running, packed) as machine:
                    check_disk(machine, IMAGE_SIZE)
                    if machine.probe_disk().get("packed_ring") != str(int(packed)):
                        raise Failure(f"rings of the other kind than packed={packed}")
                    yield backend, machine
        except Failure:
            for log in sorted(directory.glob("*.log")):
                print(f"--- {log.name}\n{tail(log)}", file=sys.stderr)
            raise


def check_disk(machine: Machine, size: int) -> None:
    """The guest sees the disk that the back-end serves, with a cache that it has to flush."""
    found = machine.probe_disk()
    expected = {"sectors": str(size // SECTOR), "queues": str(QUEUES), "cache": "write back"}
    for key, value in expected.items():
        if found.get(key) != value:
            raise Failure(f"the disk's {key}: {found.get(key)}, not {value}")


def end(backend: Backend, machine: Machine) -> None:
    """The front-end goes first; its back-end waits for the next one until it is told to end."""
    machine.shut_down()
    backend.terminate()


def four_queues(backend: Backend, machine: Machine) -> None:
    """The whole disk through four queues, twice over, so that no stale block can pass."""
    for stamp in (1, 2):
        machine.write(0, ALL_BLOCKS, stamp)
        machine.run("drop_caches")
        machine.verify(0, ALL_BLOCKS, stamp)
    check_image(backend.image, 0, ALL_BLOCKS, 2)
    end(backend, machine)


def hotplug(backend: Backend, machine: Machine) -> None:
    """Unplugged and plugged again, every other time over a new connection; the data stay."""
    machine.write(0, FEW_BLOCKS, 0)
    for number in range(1, HOTPLUG_ROUNDS + 1):
        machine.unplug_disk()
        if number % 2 == 0:
            machine.reconnect_disk()
        machine.plug_disk()
        check_disk(machine, IMAGE_SIZE)
        machine.verify(0, FEW_BLOCKS, number - 1)
        machine.write(0, FEW_BLOCKS, number)
        machine.verify(0, FEW_BLOCKS, number)
    check_image(backend.image, 0, FEW_BLOCKS, HOTPLUG_ROUNDS)
    end(backend, machine)


def reboot(backend: Backend, machine: Machine) -> None:
    """The reset of a reboot loses nothing, and the disk works after it."""
    machine.write(0, FEW_BLOCKS, 0)
    for number in range(1, REBOOTS + 1):
        machine.reboot()
        check_disk(machine, IMAGE_SIZE)
        machine.verify(0, FEW_BLOCKS, number - 1)
        machine.write(0, FEW_BLOCKS, number)
        machine.verify(0, FEW_BLOCKS, number)
    check_image(backend.image, 0, FEW_BLOCKS, REBOOTS)
    end(backend, machine)


def sigterm(backend: Backend, machine: Machine) -> None:
    """SIGTERM under load: a prompt, clean end, and every write that was flushed is in the image."""
    flushed: Dict[int, int] = {}

    def note(report: Report) -> None:
        key, value = report
        if key == "flushed":
            thread, writes = value.split()
            flushed[int(thread)] = int(writes)

    machine.send(f"disk-io churn /dev/vda {QUEUES} 0 {FEW_BLOCKS} &")
    deadline = time.monotonic() + CHURN_SECONDS
    while min((flushed.get(thread, 0) for thread in range(QUEUES))) < CHURN_WRITES:
        note(machine.next_report(deadline, f"{CHURN_WRITES} flushed writes of each thread"))
    machine.ignore_others()
    backend.terminate()
    # What the guest still has to say about flushes comes before its answer to this.
    for report in machine.run("true"):
        note(report)
    check_churn(backend.image, QUEUES, FEW_BLOCKS, flushed)


def resize(backend: Backend, machine: Machine) -> None:
    """The image grows, SIGHUP tells the back-end, the back-end tells the guest."""
    machine.write(0, FEW_BLOCKS, 1)
    backend.resize_image(GROWN_SIZE)
    backend.signal(signal.SIGHUP)
    machine.run(f"grown {GROWN_SIZE // SECTOR}")
    check_disk(machine, GROWN_SIZE)
    last = GROWN_SIZE // BLOCK_SIZE - FEW_BLOCKS
    machine.write(last, FEW_BLOCKS, 2)
    machine.verify(last, FEW_BLOCKS, 2)
    check_image(backend.image, 0, FEW_BLOCKS, 1)
    check_image(backend.image, last, FEW_BLOCKS, 2)
    end(backend, machine)


def packed_four_queues(backend: Backend, machine: Machine) -> None:
    """The same with packed rings."""
    four_queues(backend, machine)


def packed_reboot(backend: Backend, machine: Machine) -> None:
    """Packed rings start anew in the middle of a round."""
    reboot(backend, machine)


SPLIT: List[Callable[[Backend, Machine], None]] = [four_queues, hotplug, reboot, sigterm, resize]
PACKED: List[Callable[[Backend, Machine], None]] = [packed_four_queues, packed_reboot]
TESTS = SPLIT + PACKED


def run(test: Callable[[Backend, Machine], None], guest: Path) -> None:
    """Around each test a guest that is up and sees its disk."""
    with guest_with_disk(guest, packed=test in PACKED) as (backend, machine):
        test(backend, machine)


if __name__ == "__main__":
    sys.exit(run_tests("guest", __doc__, TESTS, run, sys.argv[1:]))
