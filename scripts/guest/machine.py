"""A QEMU machine whose disk is a vhost-user-blk back-end, and the guest in it."""

import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Callable, Dict, List, Self, Tuple

from harness import Channel, Child, Failure

CONNECT_SECONDS = 10
QMP_SECONDS = 20
BOOT_SECONDS = 60
COMMAND_SECONDS = 60
SHUTDOWN_SECONDS = 20
MEMORY = "256M"

Report = Tuple[str, str]


class Qmp:
    """QEMU's control channel: one command at a time, events kept until asked for."""

    def __init__(self, channel: Channel, watch: Callable[[], None]) -> None:
        self._channel = channel
        self._watch = watch
        self._events: List[Dict[str, Any]] = []
        self._read(time.monotonic() + QMP_SECONDS, "the QMP greeting")
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        self._channel.send_line(json.dumps({"execute": command, "arguments": arguments}))
        deadline = time.monotonic() + QMP_SECONDS
        while True:
            answer = self._read(deadline, f"QMP's answer to {command}")
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise Failure(f"QMP {command}: {answer['error']['desc']}")
            self._events.append(answer)

    def wait_event(self, name: str, **data: Any) -> None:
        deadline = time.monotonic() + QMP_SECONDS
        while True:
            for event in self._events:
                found = event.get("data", {})
                if event["event"] == name and all(found.get(key) == value for key, value in data.items()):
                    self._events.remove(event)
                    return
            self._events.append(self._read(deadline, f"the QMP event {name}"))

    def _read(self, deadline: float, what: str) -> Dict[str, Any]:
        return dict(json.loads(self._channel.read_line(deadline, self._watch, what)))


def option_value(value: Any) -> Any:
    """What QMP takes as a value of JSON, as the command line has it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return value


class Machine:
    """Boots in its `with` statement, is gone after it. `watch` raises when the run is lost anyway."""

    def __init__(
        self, guest: Path, directory: Path, disk: Path, queues: int, watch: Callable[[], None], packed: bool = False
    ) -> None:
        self._guest = guest
        self._packed = packed
        self._directory = directory
        self._disk = disk
        self._queues = queues
        self._watch_others = watch
        self._command_number = 0
        self.kernel_version = ""
        self.boot_seconds = 0.0

    def _command(self) -> List[str]:
        # The second serial port carries our commands, so that kernel messages cannot tear them.
        guest, directory = self._guest, self._directory
        return [
            "qemu-system-x86_64",
            *("-nodefaults", "-no-user-config", "-display", "none"),
            *("-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(self._queues)),
            *("-kernel", str(guest / "vmlinuz"), "-initrd", str(guest / "initramfs.cpio")),
            *("-append", "console=ttyS0 quiet panic=-1 mitigations=off"),
            *("-serial", f"file:{directory / 'kernel.log'}"),
            *("-chardev", f"socket,id=console,path={directory / 'console.sock'}", "-serial", "chardev:console"),
            *("-chardev", f"socket,id=qmp,path={directory / 'qmp.sock'}", "-mon", "chardev=qmp,mode=control"),
            *self._vhost_user_options(),
        ]

    def _vhost_user_options(self) -> List[str]:
        """The device, and the guest's memory, which vhost-user shares with the back-end: hence the memfd."""
        return [
            *("-object", f"memory-backend-memfd,id=memory,share=on,size={MEMORY}"),
            *("-machine", "q35,memory-backend=memory", "-m", MEMORY),
            *("-device", "pcie-root-port,id=port0,chassis=1"),
            *("-chardev", f"socket,id=disk,path={self._disk}"),
            *("-device", ",".join(f"{key}={option_value(value)}" for key, value in self._disk_device().items())),
        ]

    def _disk_device(self) -> Dict[str, Any]:
        return {
            "driver": "vhost-user-blk-pci",
            "id": "disk0",
            "bus": "port0",
            "chardev": "disk",
            "num-queues": self._queues,
            "packed": self._packed,
        }

    def __enter__(self) -> Self:
        began = time.monotonic()
        with ExitStack() as stack:
            self._console = stack.enter_context(self._channel("console"))
            qmp_channel = stack.enter_context(self._channel("qmp"))
            self._qemu = stack.enter_context(Child("QEMU", self._command(), self._directory / "qemu.log"))
            self._console.accept(CONNECT_SECONDS, self._watch)
            qmp_channel.accept(CONNECT_SECONDS, self._watch)
            self._qmp = Qmp(qmp_channel, self._watch)
            self.wait_ready()
            self._resources = stack.pop_all()
        self.boot_seconds = time.monotonic() - began
        return self

    def __exit__(self, *_exception: object) -> None:
        self._resources.close()

    def _channel(self, name: str) -> Channel:
        return Channel(self._directory / f"{name}.sock", self._directory / f"{name}.log")

    def shut_down(self) -> None:
        """The guest powers itself off, which ends QEMU."""
        self.send("poweroff -f")
        status = self._qemu.wait(SHUTDOWN_SECONDS)
        if status != 0:
            raise Failure(f"QEMU ended with status {status}")

    def _watch(self) -> None:
        self._qemu.check_running()
        self._watch_others()

    def ignore_others(self) -> None:
        """From now on only QEMU itself has to live: the test ends the back-end on purpose."""
        self._watch_others = lambda: None

    def reboot(self) -> None:
        """The guest resets the machine, and with it the device, and comes up again."""
        self.send("reboot -f")
        self._qmp.wait_event("RESET", guest=True)
        self.wait_ready()

    def wait_ready(self) -> None:
        """Until the guest takes commands, after power-on or reboot."""
        deadline = time.monotonic() + BOOT_SECONDS
        key = ""
        while key != "ready":
            key, self.kernel_version = self.next_report(deadline, "the guest's boot")

    def next_report(self, deadline: float, what: str) -> Report:
        """The guest's next "VU: key value" line. A line that tells of a failure is one."""
        while True:
            line = self._console.read_line(deadline, self._watch, what)
            if not line.startswith("VU: "):
                continue
            key, _, value = line[len("VU: ") :].partition(" ")
            if key == "failed":
                raise Failure(f"guest: {value}")
            return key, value

    def send(self, command: str) -> int:
        """Has the guest run a shell command; returns the number its end will be reported with."""
        self._command_number += 1
        self._console.send_line(f"{self._command_number} {command}")
        return self._command_number

    def run(self, command: str, seconds: float = COMMAND_SECONDS) -> List[Report]:
        """Runs a shell command in the guest to its successful end; returns what it reported."""
        number = self.send(command)
        deadline = time.monotonic() + seconds
        reports: List[Report] = []
        while True:
            key, value = self.next_report(deadline, f"the guest's {command}")
            if key != "done":
                reports.append((key, value))
                continue
            if value.split()[0] != str(number):
                continue
            if value.split()[1] != "0":
                raise Failure(f"guest: {command} ended with status {value.split()[1]}")
            return reports

    def probe_disk(self) -> Dict[str, str]:
        """What the guest knows about its disk. Its cache is made to need flushes, whatever the default."""
        return dict(self.run("probe"))

    def write(self, start: int, blocks: int, stamp: int) -> float:
        """Writes and flushes stamped blocks on all queues; returns the guest's seconds."""
        reports = self.run(f"disk-io write /dev/vda {self._queues} {start} {blocks} {stamp}")
        return float(dict(reports)["seconds"])

    def verify(self, start: int, blocks: int, stamp: int) -> float:
        reports = self.run(f"disk-io verify /dev/vda {self._queues} {start} {blocks} {stamp}")
        return float(dict(reports)["seconds"])

    def unplug_disk(self) -> None:
        self._qmp.execute("device_del", id="disk0")
        self._qmp.wait_event("DEVICE_DELETED", device="disk0")
        self.run("gone")

    def plug_disk(self) -> None:
        self._qmp.execute("device_add", **self._disk_device())

    def reconnect_disk(self) -> None:
        """While the disk is unplugged: hangs up on the back-end and calls it again."""
        self._qmp.execute("chardev-remove", id="disk")
        address = {"type": "unix", "data": {"path": str(self._disk)}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        self._qmp.execute("chardev-add", id="disk", backend=backend)


class PastedMachine(Machine):
    """A machine whose device and memory are what a user would paste from somewhere."""

    def __init__(
        self, guest: Path, directory: Path, options: List[str], queues: int, watch: Callable[[], None]
    ) -> None:
        super().__init__(guest, directory, Path(), queues, watch)
        self._options = options

    def _vhost_user_options(self) -> List[str]:
        return self._options
