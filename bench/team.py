"""The processes that take turns in ``bench_decode``: a team for every provider of ``bench.peers``."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Self


class Peer:
    """A process that decodes as it is told, started at the first job."""

    def __init__(self, device: str, name: str, core: int) -> None:
        self.command = [sys.executable, "-m", "bench.peers", device, name, str(core)]

    @cached_property
    def process(self) -> "subprocess.Popen[str]":
        pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
        return subprocess.Popen(self.command, text=True, bufsize=1, stdin=pipe, stdout=pipe, stderr=quiet)

    def ask(self, job: Mapping[str, Any]) -> None:
        """Send a job."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")

    def answer(self) -> dict[str, Any]:
        """Wait for what came of it."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return dict(json.loads(line)) if line else {"error": f"ended with code {self.process.wait()}"}


class Team:
    """The processes of one provider: one a core, and one that may use all."""

    def __init__(self, device: str, name: str, num_processes: int) -> None:
        self.cores = sorted(os.sched_getaffinity(0))
        places = [-1] * num_processes if device == "cuda" else self.cores
        self.members = [Peer(device, name, core) for core in places]
        self.free = [Peer(device, name, -1)] if device == "cpu" else []

    def run(self, mode: str, job: Mapping[str, Any]) -> dict[str, Any]:
        """Do ``job`` in every process of ``mode`` at once. Returns seconds a video and the memory of all of them."""
        num_threads = len(self.cores) if mode == "own threads" else 1
        peers = {"own threads": self.free, "one core": self.members[:1], "one process": self.members[:1]}.get(
            mode, self.members
        )
        for peer in peers:
            peer.ask({"times": 1, "sample": None, "num_threads": num_threads, **job})
        answers = [peer.answer() for peer in peers]
        for answer in answers:
            if "error" in answer:
                return answer
        seconds = max(a["ended"] for a in answers) - min(a["started"] for a in answers)
        memory = {key: round(sum(a[key] for a in answers)) for key in ("peak_mb", "before_mb")}
        videos = len(peers) * job.get("times", 1)
        cpu_s = sum(a["cpu_s"] for a in answers)
        return {"seconds": seconds / videos, "cpu_s": cpu_s / videos, "frames": answers[0]["frames"], **memory}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for peer in (*self.members, *self.free):
            if "process" in vars(peer):
                peer.process.kill()
                peer.process.communicate()
