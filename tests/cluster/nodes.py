"""Three nodes of Ray on this machine, each with one processor."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

__all__ = ["Namespaces", "Nodes", "actors_among", "processes_below", "three_nodes"]

COUNT = 3


class Nodes(Protocol):
    """A cluster, one of whose nodes can be killed.

    Attributes:
        address: its address.
        enter: words before the command of a driver.
        environment: variables of the environment of a driver.
    """

    address: str
    enter: list[str]
    environment: Mapping[str, str]

    def kill_one(self) -> None:
        """End all processes of a node, not the first one, without a warning."""

    def restore(self) -> None:
        """Start the node that was killed again."""

    def processes(self) -> Iterator[int]:
        """All processes of the nodes."""


class Namespaces:
    """Nodes in network namespaces, which are joined by a bridge and by nothing else.

    Args:
        folder: folder for Ray's files; sockets in it need a short path.
    """

    def __init__(self, folder: str) -> None:
        self._folder, self._names = folder, [f"leery-{os.getpid()}-{n}" for n in range(COUNT)]
        self.address, self.enter = "10.77.0.1:6379", ["ip", "netns", "exec", self._names[0]]
        token = os.urandom(24).hex()
        self.environment: Mapping[str, str] = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
            "RAY_worker_niceness": "0",
        }

    def start(self) -> None:
        """Make the namespaces and start a node in each."""
        first = self._names[0]
        for name in self._names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", first, "link", "add", "bridge", "type", "bridge")
        _ip("-n", first, "address", "add", "10.77.0.1/24", "dev", "bridge")
        _ip("-n", first, "link", "set", "bridge", "up")
        for number, name in enumerate(self._names[1:], start=2):
            there = ("type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("-n", first, "link", "add", f"to{number}", *there)
            _ip("-n", first, "link", "set", f"to{number}", "master", "bridge", "up")
            _ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
        for number in range(1, COUNT + 1):
            self._start_node(number)

    def kill_one(self) -> None:
        self._kill(self._names[-1])

    def restore(self, *mount: str) -> None:
        """Start the node that was killed again, after a mount that only it sees, if one is given.

        Args:
            mount: arguments of the command ``mount``.
        """
        self._start_node(COUNT, mount)

    def processes(self) -> Iterator[int]:
        """All processes of the nodes."""
        for name in self._names:
            yield from map(int, _ip("netns", "pids", name).split())

    def end(self) -> None:
        """End all nodes and remove the namespaces, as far as they were made."""
        for name in self._names:
            with suppress(subprocess.CalledProcessError):
                self._kill(name)
                _ip("netns", "delete", name)

    def _start_node(self, number: int, mount: tuple[str, ...] = ()) -> None:
        """Start the node of a number, from 1; the first one is the head."""
        own = f"--node-ip-address=10.77.0.{number}"
        head = ["--head", "--port=6379", f"--temp-dir={self._folder}", "--include-dashboard=false"]
        words = head if number == 1 else [f"--address={self.address}"]
        more = ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats"]
        start = [str(Path(sys.executable).with_name("ray")), "start", own, *words, *more]
        # What a command there mounts is seen by its own processes only.
        script = f"mount {shlex.join(mount)} && exec {shlex.join(start)}"
        words_there = ["sh", "-c", script] if mount else start
        subprocess.run(
            ["ip", "netns", "exec", self._names[number - 1], *words_there],
            env={**os.environ, **self.environment}, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def _kill(self, name: str) -> None:
        while found := _ip("netns", "pids", name).split():
            for process in map(int, found):
                os.kill(process, signal.SIGKILL)
            time.sleep(0.1)


class Utility:
    """Nodes of Ray's own cluster utility, for a user who may not make namespaces."""

    def __init__(self, folder: str) -> None:
        from ray.cluster_utils import Cluster  # noqa: PLC0415 - imports Ray

        self.enter: list[str] = []
        self.environment: Mapping[str, str] = {"RAY_TMPDIR": folder, "RAY_worker_niceness": "0"}
        self._before = dict(os.environ)
        os.environ.update(self.environment)
        self._made: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        self.address = self._made.address

    def start(self) -> None:
        """Start the other nodes."""
        for _ in range(COUNT - 1):
            self.restore()

    def kill_one(self) -> None:
        self._made.remove_node(self._made.list_all_nodes()[-1], allow_graceful=False)

    def restore(self) -> None:
        self._made.add_node(num_cpus=1)

    def processes(self) -> Iterator[int]:
        """All processes of the nodes."""
        yield from processes_below(os.getpid())

    def end(self) -> None:
        """End all nodes."""
        self._made.shutdown()
        os.environ.clear()
        os.environ.update(self._before)


@contextmanager
def three_nodes() -> Iterator[Nodes]:
    """A cluster for the time of a block."""
    with TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        made = (Namespaces if os.getuid() == 0 else Utility)(folder)
        try:
            made.start()
            yield made
        finally:
            made.end()


def _ip(*words: str) -> str:
    """What the command ``ip`` says."""
    done = subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
    return done.stdout


def actors_among(processes: Iterator[int]) -> Iterator[int]:
    """Those of some processes that are actors of Ray Data."""
    for process in processes:
        with suppress(OSError):
            if b"ray::MapWorker" in Path(f"/proc/{process}/cmdline").read_bytes():
                yield process


def processes_below(top: int) -> Iterator[int]:
    """The processes that a process has started, directly or not."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if top in _above(int(folder.name)):
                yield int(folder.name)


def _above(process: int) -> list[int]:
    """The processes that have started a process, directly or not."""
    parent = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return [parent, *(_above(parent) if parent > 1 else ())]
