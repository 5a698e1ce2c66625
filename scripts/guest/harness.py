"""What every guest run needs: child processes that never outlive us, bounded waits, line channels."""

import select
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Callable, Optional, Self, Sequence

POLL_SECONDS = 0.02
KILL_SECONDS = 10


class Failure(Exception):
    """An expectation that was not met; the text says which."""


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Failure(f"{what}: not within {seconds} s")
        time.sleep(POLL_SECONDS)


def exit_on_signals() -> None:
    """Turns the signals that end a run into SystemExit, so that every `with` block cleans up."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, leave)


class Child:
    """A child process that is gone when its `with` block is left, or when we die."""

    def __init__(self, name: str, command: Sequence[str], log: Path, cwd: Optional[Path] = None) -> None:
        self.name = name
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=cwd,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(KILL_SECONDS)

    def check_running(self) -> None:
        status = self._process.poll()
        if status is not None:
            raise Failure(f"{self.name} ended with status {status}: {tail(self.log)}")

    def signal(self, number: signal.Signals) -> None:
        self.check_running()
        self._process.send_signal(number)

    def wait(self, seconds: float) -> int:
        """The exit status; negative for a signal, as subprocess has it."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failure(f"{self.name} still runs after {seconds} s") from None


class Channel:
    """Lines over a socket that the other side connects to; every wait is bounded and watched."""

    def __init__(self, path: Path, transcript: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._connection: Optional[socket.socket] = None
        self._buffer = b""
        self._transcript = transcript.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._listener.close()
        if self._connection is not None:
            self._connection.close()
        self._transcript.close()

    def accept(self, seconds: float, watch: Callable[[], None]) -> None:
        self._wait_readable(self._listener, time.monotonic() + seconds, watch, "a connection")
        self._connection, _ = self._listener.accept()

    def send_line(self, line: str) -> None:
        assert self._connection is not None
        self._connection.sendall(line.encode() + b"\n")

    def read_line(self, deadline: float, watch: Callable[[], None], what: str) -> str:
        assert self._connection is not None
        while b"\n" not in self._buffer:
            self._wait_readable(self._connection, deadline, watch, what)
            data = self._connection.recv(65536)
            if not data:
                watch()
                raise Failure(f"the machine hung up while we waited for {what}")
            self._transcript.write(data)
            self._transcript.flush()
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line.decode(errors="replace").rstrip("\r")

    @staticmethod
    def _wait_readable(source: socket.socket, deadline: float, watch: Callable[[], None], what: str) -> None:
        while not select.select([source], [], [], 0.2)[0]:
            watch()
            if time.monotonic() > deadline:
                raise Failure(f"time is up while we waited for {what}")


def tail(path: Path, lines: int = 20) -> str:
    """The end of a log, for a message about what went wrong."""
    text = path.read_text(errors="replace").splitlines() if path.exists() else []
    return "\n".join(text[-lines:]) or "(no output)"
