"""Download published weights, with a bar."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from sqt_fast.errors import CheckpointError
from sqt_fast.network.published import PUBLISHED

if TYPE_CHECKING:  # pooch and rich are imported only when something is downloaded
    from rich.progress import Progress


class _Bar:
    """What pooch calls during a download. Also remembers how many bytes the server announced."""

    def __init__(self, progress: "Progress", name: str) -> None:
        self.total = 0
        self._progress = progress
        self._task = progress.add_task(name, total=None, visible=False)

    def update(self, size_bytes: int) -> None:
        self._progress.update(self._task, advance=size_bytes, total=self.total or None, visible=True)

    def reset(self) -> None:
        self._progress.reset(self._task)

    def close(self) -> None:
        """Leave the last word to the display that draws the bar."""


def download(name: str, *, progress: bool) -> None:
    """Fetch a published file to its place, whole or not at all. Raises CheckpointError."""
    import pooch
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    url, path = PUBLISHED[name].url, PUBLISHED[name].path
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not progress or not console.is_terminal) as display:
        bar = _Bar(display, path.name)
        fetch = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 18)

        def fetch_whole(url: str, partial: str, owner: object) -> None:
            fetch(url, partial, owner)
            if (size := Path(partial).stat().st_size) < bar.total:
                raise OSError(f"only {size} of {bar.total} bytes came")

        pooch.get_logger().setLevel(logging.WARNING)  # it would announce the hash as a line of code to copy
        try:
            pooch.retrieve(url, known_hash=None, fname=path.name, path=path.parent, downloader=fetch_whole)
        except (OSError, ValueError) as error:  # errors of requests are OSError
            raise CheckpointError(
                f"{name}: cannot download {url} ({_short(error)}); fetch it elsewhere and put it at {path}, "
                f"or give the path of a file with --weights PATH"
            ) from None
    if progress and not console.is_terminal:
        console.print(f"downloaded {url} to {path}", markup=False, highlight=False, soft_wrap=True)


def _short(error: Exception) -> str:
    """Say in a few words why a download failed; requests would print its whole connection pool."""
    response = getattr(error, "response", None)
    if response is not None:
        response.close()  # pooch does not
        return f"HTTP {response.status_code}"
    return type(error).__name__ if type(error).__module__.startswith("requests") else str(error)
