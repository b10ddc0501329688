"""What can go wrong and is not a bug. Every message says the value, what is allowed, and the remedy, on one line.

SqtError
+-- ConfigError       an option or argument that cannot work (exit code 2)
+-- CheckpointError   weights that cannot be read or do not fit the network
+-- BackendError      the chosen backend cannot run here
|   +-- ParityError   an engine whose results are not the network's (exit code 3)
+-- DeviceLostError   the device stopped working: no video's fault, another worker may fare better
+-- OutputError       the table cannot be written, resumed or locked
+-- InterruptedRunError  the run was stopped from outside and can be resumed
+-- VideoError        one file that cannot be labelled: becomes a row, ends the run only with --on-error fail
"""


def first_line(error: BaseException) -> str:
    """Return the first line of what ``error`` says, or its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def system_reason(error: Exception) -> str:
    """Return what the system, or FFmpeg, says of ``error``, to stand in a sentence: "no such file or directory"."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()


class SqtError(Exception):
    """Base class of all expected failures. The command line prints it without a traceback."""

    exit_code = 1


class ConfigError(SqtError):
    """An option or argument that cannot work."""

    exit_code = 2


class CheckpointError(SqtError):
    """Weights that cannot be found, read, or fitted to a network."""


class BackendError(SqtError):
    """The chosen backend cannot run here."""


class ParityError(BackendError):
    """Another form of the network does not give what the network gives."""

    exit_code = 3


class DeviceLostError(SqtError):
    """The device stopped working: no video's fault, a new worker may fare better."""


class OutputError(SqtError):
    """The table cannot be written, resumed or locked."""


class InterruptedRunError(SqtError):
    """The run was stopped from outside and can be resumed."""


class VideoError(SqtError):
    """One file that cannot be labelled.

    status: the machine-readable reason, one of ``sqt_fast.table.schema.STATUSES``.
    """

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status

    @classmethod
    def unforeseen(cls, error: BaseException) -> "VideoError":
        """Return ``error``, which nobody expected, as one of the file."""
        return cls("error", f"{type(error).__name__}: {error}")

    def __reduce__(self) -> tuple[type["VideoError"], tuple[str, str]]:
        """It passes between processes."""
        return VideoError, (self.status, str(self))
