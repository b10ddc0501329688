"""Whether DALI is there, and what its exceptions say: RuntimeErrors, mostly an account of where. Imports no DALI."""

import re
from importlib.util import find_spec


def is_installed() -> bool:
    """Return whether DALI is there, without importing it."""
    return find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None


def in_words(error: BaseException) -> str:
    """Return in one line what ``error`` says, without DALI's account of where it was."""
    text = str(error).rpartition("encountered:")[2].strip() or type(error).__name__
    return re.sub(r'^Assert on ".*?" failed: ', "", text.splitlines()[0])
