"""The vhost-user-blk back-end under test, as a process with a disk image."""

import os
import shlex
import signal
import time
from pathlib import Path
from typing import Optional, Sequence

from harness import Child, Failure, wait_until

ROOT = Path(__file__).resolve().parents[2]

# VU_BLK_COMMAND puts another back-end in the place of ours, to compare how it fares.
COMMAND = (
    os.environ.get("VU_BLK_COMMAND")
    or "build/examples/vu-blk --socket-path={socket} --blk-file={image} --num-queues={queues}"
)

LISTEN_SECONDS = 10
EXIT_SECONDS = 2
LISTENING = 0x10000  # __SO_ACCEPTCON in the flags of /proc/net/unix


def is_listening(path: Path) -> bool:
    """Whether the socket takes connections; found out without making one, which the back-end would serve."""
    for line in Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[7] == str(path) and int(fields[3], 16) & LISTENING:
            return True
    return False


class Backend(Child):
    def __init__(
        self, directory: Path, image_size: int, queues: int, command: Optional[Sequence[str]] = None
    ) -> None:
        """`command` serves disk.img at disk.sock, both in `directory`; COMMAND when there is none."""
        self.image = directory / "disk.img"
        self.socket = directory / "disk.sock"
        self.resize_image(image_size)
        values = {"socket": self.socket, "image": self.image, "queues": queues}
        command = command or [word.format(**values) for word in shlex.split(COMMAND)]
        self.program = Path(command[0]).name
        super().__init__("the back-end", command, directory / "back-end.log", cwd=ROOT)

    def wait_listening(self) -> None:
        def listening() -> bool:
            self.check_running()
            return is_listening(self.socket)

        wait_until(listening, LISTEN_SECONDS, "the back-end listens")

    def resize_image(self, size: int) -> None:
        with self.image.open("ab") as image:
            image.truncate(size)

    def terminate(self) -> float:
        """Ends it as an administrator would; returns the seconds that took."""
        began = time.monotonic()
        self.signal(signal.SIGTERM)
        status = self.wait(EXIT_SECONDS)
        if status != 0:
            raise Failure(f"the back-end's exit status is {status} after SIGTERM")
        if self.socket.exists():
            raise Failure("the back-end left its socket file")
        return time.monotonic() - began
