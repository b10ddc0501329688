"""TensorRT and TensorRT-RTX, one API under two names: found, loaded, and heard when they complain."""

import importlib
import logging
import re
from dataclasses import dataclass
from typing import Any

from sqt_fast.errors import BackendError, first_line

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Flavour:
    """One of the two. modules: what it is imported as, the first that is there; oldest: the first version that fits."""

    name: str
    title: str
    modules: tuple[str, ...]
    oldest: tuple[int, int]
    needs_gpu: bool
    install: str


FLAVOURS = {
    "tensorrt": Flavour(
        "tensorrt",
        "TensorRT",
        modules=("tensorrt", "tensorrt_bindings"),
        oldest=(10, 13),
        needs_gpu=True,  # it times kernels where they will run
        install="pip install 'sqt-fast[tensorrt]', whose libraries come from NVIDIA's own package index",
    ),
    "rtx": Flavour(
        "rtx",
        "TensorRT-RTX",
        modules=("tensorrt_rtx", "tensorrt_rtx_bindings"),
        oldest=(1, 4),
        needs_gpu=False,
        install="pip install 'sqt-fast[tensorrt-rtx]'",
    ),
}


def load_library(flavour: Flavour) -> Any:
    """Import the library. Raises BackendError where it is missing, cannot be loaded, or is too old."""
    for module in flavour.modules:
        try:
            library = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name == module:
                continue
            raise BackendError(f"{flavour.title} cannot be loaded ({error}); {flavour.install}") from error
        except Exception as error:  # its package is there, its libraries are not: errors of many kinds
            raise BackendError(f"{flavour.title} cannot be loaded ({first_line(error)}); {flavour.install}") from error
        if not hasattr(library, "__version__"):  # a folder of that name, or a package without its libraries
            continue
        if _number(library.__version__) < flavour.oldest:
            oldest = ".".join(map(str, flavour.oldest))
            raise BackendError(
                f"{flavour.title} {library.__version__} is too old: {oldest} or newer is needed; {flavour.install}"
            )
        return library
    raise BackendError(f"{flavour.title} is not installed: {flavour.install}")


def _number(version: str) -> tuple[int, int]:
    """Return major and minor of a version such as ``11.4.0.106``."""
    major, minor, *_ = (int(part) for part in [*re.findall(r"\d+", version), "0", "0"])
    return major, minor


def is_older(version: str, other: str) -> bool:
    """Whether ``version`` comes before ``other``, by major and minor."""
    return _number(version) < _number(other)


def hear(library: Any, errors: list[str], layers: list[str] | None = None) -> Any:
    """Return a logger for the library that adds what it calls an error to ``errors``. Keep it as long as what it hears.

    layers: takes the lines in which the builder describes the engine.
    """
    severity_of_errors = library.ILogger.Severity.ERROR

    class Logger(library.ILogger):  # type: ignore[misc]  # a class of a library that is loaded at run time
        def __init__(self) -> None:
            library.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(severity_of_errors):
                errors.append(message.strip())
            elif layers is not None and message.startswith("Layers:"):  # and then inputs and outputs, which we know
                layers.extend(line for line in message.splitlines() if line.startswith("Name: "))
            log.debug("%s %s", severity.name, message)

    return Logger()


def why(errors: list[str]) -> str:
    """Return what the library said last, on one line."""
    return "; ".join(" ".join(error.split()) for error in errors[-3:]) or "it did not say why"
