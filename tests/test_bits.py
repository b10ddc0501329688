"""Numbers of any length, against the text of the bits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqt_fast.video.bits import Bits


@given(st.binary(max_size=12), st.lists(st.integers(0, 20), max_size=12))
def test_fields_are_those_of_the_text(data: bytes, counts: list[int]) -> None:
    text, bits = "".join(f"{byte:08b}" for byte in data), Bits(memoryview(data))
    for count in counts:
        if count > len(text):
            with pytest.raises(ValueError, match="cut off"):
                bits.read(count)
            return
        assert bits.read(count) == int(text[:count] or "0", 2)
        text = text[count:]
