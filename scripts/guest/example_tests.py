#!/usr/bin/python3 -B
"""
Tests of the examples and of the commands that users paste, each with a Linux guest under QEMU.
Usage: example_tests.py GUEST-DIRECTORY [TEST ...]

Prints one line a test, "ok NAME" or "FAIL NAME: REASON"; the status is 0 when all passed.
"""

import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Callable, List

import readme
from backend import Backend, is_listening
from harness import Child, Failure, tail, wait_until
from machine import PastedMachine
from pattern import check_image
from runner import run_tests

LISTEN_SECONDS = 10
ANNOUNCE_SECONDS = 10
EXIT_SECONDS = 5
RANDOM_BYTES = 4096
IMAGE_SIZE = 64 << 20
QUEUES = 2
BLOCKS = 256


def replace_path(words: List[str], written: str, used: Path) -> List[str]:
    """The README's words with its socket in a place of our own."""
    if not any(written in word for word in words):
        raise Failure(f"{written} is not in {' '.join(words)}")
    return [word.replace(written, str(used)) for word in words]


def check_entropy(machine: PastedMachine) -> None:
    """The guest's source is the device, it gives what is asked for, never the same, and not in a pattern."""
    digests = set()
    for _ in range(2):
        found = dict(machine.run(f"entropy {RANDOM_BYTES}"))
        if not found["source"].startswith("virtio_rng"):
            raise Failure(f"the guest's entropy comes from {found['source']}")
        if found["bytes"] != str(RANDOM_BYTES):
            raise Failure(f"{found['bytes']} bytes of entropy, not {RANDOM_BYTES}")
        if int(found["packed"]) < RANDOM_BYTES:
            raise Failure(f"{RANDOM_BYTES} random bytes pack into {found['packed']}")
        digests.add(found["digest"])
    if len(digests) != 2:
        raise Failure("the same random bytes twice")


def run_minimal(program: str, guest: Path, directory: Path) -> None:
    """The README's entropy device, behind the README's QEMU command."""
    socket = directory / "rng.sock"
    command = [str(readme.ROOT / program), str(socket)]
    with Child("minimal", command, directory / "minimal.log") as minimal:

        def listening() -> bool:
            minimal.check_running()
            return is_listening(socket)

        wait_until(listening, LISTEN_SECONDS, "minimal listens")
        options = replace_path(readme.qemu_options("vhost-user-rng-pci"), "/tmp/rng.sock", socket)
        with PastedMachine(guest, directory, options, 1, minimal.check_running) as machine:
            check_entropy(machine)
            machine.reboot()
            check_entropy(machine)
            machine.shut_down()
        minimal.signal(signal.SIGTERM)
        status = minimal.wait(EXIT_SECONDS)
        if status != 0 or socket.exists():
            raise Failure(f"minimal after SIGTERM: status {status}, socket file left: {socket.exists()}")


def minimal_c(guest: Path, directory: Path) -> None:
    """The README's listing in C."""
    run_minimal("build/examples/minimal", guest, directory)


def minimal_rust(guest: Path, directory: Path) -> None:
    """Its twin in Rust."""
    target = os.environ.get("CARGO_TARGET_DIR", "target")
    run_minimal(f"{target}/debug/examples/minimal", guest, directory)


def use_disk(guest: Path, directory: Path, backend: Backend, options: List[str]) -> None:
    with PastedMachine(guest, directory, options, QUEUES, backend.check_running) as machine:
        found = machine.probe_disk()
        if (found.get("sectors"), found.get("queues")) != (str(IMAGE_SIZE // 512), str(QUEUES)):
            raise Failure(f"the guest sees another disk: {found}")
        machine.write(0, BLOCKS, 1)
        machine.verify(0, BLOCKS, 1)
        machine.shut_down()
    check_image(backend.image, 0, BLOCKS, 1)
    backend.terminate()


def vu_blk_announced(guest: Path, directory: Path) -> None:
    """The options that vu-blk prints at its start are all that QEMU needs."""
    with Backend(directory, IMAGE_SIZE, QUEUES) as backend:
        backend.wait_listening()
        # It says so when it listens, which may have been a moment ago.
        wait_until(lambda: readme.is_announced(backend.log), ANNOUNCE_SECONDS, "vu-blk says what QEMU needs")
        use_disk(guest, directory, backend, readme.announced_qemu_options(backend.log))


def vu_blk_readme(guest: Path, directory: Path) -> None:
    """The README's QEMU command works with the README's vu-blk command."""
    (command,) = readme.commands("build/examples/vu-blk")
    socket, image = directory / "disk.sock", directory / "disk.img"
    command = replace_path(replace_path(command, "/tmp/vu-blk.sock", socket), "disk.img", image)
    options = replace_path(readme.qemu_options("vhost-user-blk-pci"), "/tmp/vu-blk.sock", socket)
    with Backend(directory, IMAGE_SIZE, QUEUES, command) as backend:
        backend.wait_listening()
        use_disk(guest, directory, backend, options)


TESTS: List[Callable[[Path, Path], None]] = [minimal_c, minimal_rust, vu_blk_announced, vu_blk_readme]


def run(test: Callable[[Path, Path], None], guest: Path) -> None:
    """In a directory of its own; on a failure the logs in it are printed."""
    with tempfile.TemporaryDirectory(prefix="vu-example-") as name:
        try:
            test(guest, Path(name))
        except Failure:
            for log in sorted(Path(name).glob("*.log")):
                print(f"--- {log.name}\n{tail(log)}", file=sys.stderr)
            raise


if __name__ == "__main__":
    sys.exit(run_tests("example", __doc__, TESTS, run, sys.argv[1:]))
