"""What DALI's exceptions say. They are RuntimeErrors, mostly an account of where it was. Imports no DALI."""

import re


def in_words(error: BaseException) -> str:
    """Return in one line what ``error`` says, without DALI's account of where it was."""
    text = str(error).rpartition("encountered:")[2].strip() or type(error).__name__
    return re.sub(r'^Assert on ".*?" failed: ', "", text.splitlines()[0])
