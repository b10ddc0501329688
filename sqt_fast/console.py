"""What a person sees: progress and summary on stderr, the dry run's findings on stdout."""

import re
import sys
import time
from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from sqt_fast.engine.events import Begun, ClipsLabelled, Event, Note, VideoFinished
from sqt_fast.engine.results import Summary
from sqt_fast.survey import Finding, Totals

# What a terminal obeys instead of showing, and what turns the direction of text.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# Seconds between plain lines where there is no terminal to draw on.
PLAIN_EVERY_S = 10.0


def printable(text: str) -> str:
    """Return ``text`` with control characters spelt out: names of files may hold what a terminal would obey."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def counted(number: int, noun: str) -> str:
    """Return ``1 video``, ``2 videos``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


class ProgressConsole:
    """Takes the events of a run: a live bar on a terminal, a line now and then elsewhere, nothing when quiet."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.quiet, self.verbose = quiet, verbose
        self.total = self.done = self.failed = self.num_clips = 0
        self.video_s = 0.0
        self.begun = self.last_line = time.perf_counter()
        self.bar: Progress | None = None

    def __enter__(self) -> "ProgressConsole":
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, event: Event) -> None:
        """Show what there is to show of an event."""
        match event:
            case Note(text):
                self._say(text)
            case Begun(total, done):
                self._begin(total, done)
            case ClipsLabelled(count):
                self.num_clips += count
                self._show()
            case VideoFinished(_, duration_s, failure):
                self.done += 1
                self.video_s += duration_s
                if failure is not None:
                    self.failed += 1
                    if self.verbose:
                        self._say(failure)
                self._show()

    def _say(self, text: str) -> None:
        if not self.quiet:
            self.console.print(escape(printable(text)))

    def _begin(self, total: int, done: int) -> None:
        self.total, self.begun = total, time.perf_counter()
        if done:
            self._say(f"{counted(done, 'video')} done before")
        if not self.quiet and self.console.is_terminal:
            columns = (
                TextColumn("{task.completed:.0f}/{task.total:.0f} videos"),
                BarColumn(bar_width=30),
                TextColumn("{task.fields[rates]}"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.bar.add_task("", total=total, rates="")
            self.bar.start()

    def _show(self) -> None:
        now = time.perf_counter()
        seconds = max(now - self.begun, 1e-9)
        rates = f"{self.failed} failed  {self.num_clips / seconds:.1f} clips/s  {self.video_s / seconds:.1f}x realtime"
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=self.done, rates=rates)
        elif not self.quiet and now - self.last_line > PLAIN_EVERY_S:
            self.last_line = now
            eta = f"ETA {_clock(seconds / self.done * (self.total - self.done))}" if self.done else "ETA unknown"
            self._say(f"{self.done}/{self.total} videos  {rates}  {eta}")


def print_summary(summary: Summary, console: Console) -> None:
    """Print the table that ends a run: first what this run did, then what the whole table holds."""
    counters = summary.counters
    grid = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    grid.add_row("this run", _this_run(summary))
    if counters.clips:
        grid.add_row("clips", f"{counters.clips}, {counters.clips / summary.labelling_s:.1f} a second")
        grid.add_row("packets", f"{counters.packets_read} read, {counters.packets_dropped} of them dropped undecoded")
        grid.add_row("frames", f"{counters.frames_decoded} decoded, {counters.frames_wanted} wanted")
        grid.add_row("speed", f"{counters.video_s / summary.labelling_s:.1f}x realtime")
        grid.add_row("network", summary.backend)
    start = f", {summary.start_s:.1f} s of it to start the network" if summary.start_s else ""
    grid.add_row("wall time", f"{summary.wall_s:.1f} s{start}; limited by: {summary.limit}")
    grid.add_row(
        "table", escape(printable(summary.output)) + ("  (labels mean nothing)" if summary.labels_mean_nothing else "")
    )
    failed = f"{counted(summary.failed, 'video')} not ok" + (f": {_counts(summary.failures)}" if summary.failed else "")
    grid.add_row("", f"{counted(summary.rows, 'row')}, {failed}")
    console.print(grid)


def _this_run(summary: Summary) -> str:
    parts = [f"{counted(summary.labelled, 'video')} labelled, {summary.failed_now} of them not ok"]
    parts += [f"{summary.already_done} done before"] * bool(summary.already_done)
    parts += [f"{summary.vanished} gone from disk"] * bool(summary.vanished)
    parts += [counted(summary.other_files, "other file")] * bool(summary.other_files)
    parts += [f"{counted(summary.links, 'link')} to files of another name"] * bool(summary.links)
    return "; ".join(parts)


def print_findings(findings: Iterable[Finding], totals: Totals) -> None:
    """Print what a dry run finds, one line a file as it comes, to stdout, and add it up in ``totals``."""
    out = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    for finding in findings:
        out.print(escape(printable(_line(finding))))
        totals.add(finding)
    sums = totals.as_dict()
    reasons, codecs = _counts(sums["failures"]), _counts(sums["codecs"])
    size_mb = sums["size_bytes"] / 1e6
    out.print(f"{counted(sums['videos'], 'video')}, {_clock(sums['duration_s'])} of video, {size_mb:.1f} MB")
    out.print(f"codecs: {codecs or 'none'}")
    out.print(f"cannot be labelled: {sums['failed']}" + (f" ({reasons})" if reasons else ""))
    if sums["already_done"]:
        out.print(f"done before: {sums['already_done']}")
    out.print(f"would label {counted(sums['clips'], 'clip')}")


def _line(finding: Finding) -> str:
    if finding.facts is None:
        assert finding.error is not None
        return f"{finding.video.name}  {finding.error.status}: {finding.error}"
    facts = finding.facts
    size, rotation = f"{facts.source.width}x{facts.source.height}", facts.source.orientation.rotation
    turned = f" turned {rotation}" if rotation else ""
    rate = f"{facts.fps:.2f} fps" + (" (varies)" if facts.is_vfr else "")
    broken = f"  {facts.broken}" if facts.broken else ""
    return (
        f"{finding.video.name}  {facts.codec} {size}{turned}  {rate}  {facts.duration_s:.2f} s  "
        f"{counted(finding.num_clips, 'clip')}{broken}"
    )


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


class BuildBar:
    """How far a build is: a bar on a terminal, from the first step on; nothing elsewhere, or when quiet."""

    def __init__(self, *, quiet: bool = False) -> None:
        console, columns = Console(stderr=True), (TextColumn("{task.description}"), BarColumn())
        hidden = quiet or not console.is_terminal
        times = TimeElapsedColumn(), TimeRemainingColumn()
        self._progress = Progress(*columns, *times, console=console, disable=hidden, transient=True)

    def __enter__(self) -> "BuildBar":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._progress.tasks:
            self._progress.stop()

    def update(self, phase: str, part: float) -> None:
        """Show which part of all is done, 0 to 1."""
        if not self._progress.tasks:
            self._progress.start()
            self._progress.add_task(phase, total=1.0)
        self._progress.update(self._progress.tasks[0].id, description=phase, completed=part)
