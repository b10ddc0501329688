"""Read the fields of a bitstream's header, one behind the other."""


class Bits:
    """Read numbers of some bits each, the highest first; raise ValueError past the end."""

    def __init__(self, data: bytes | memoryview) -> None:
        self.value = int.from_bytes(data, "big")
        self.left = 8 * len(data)

    def read(self, count: int) -> int:
        """Return the next ``count`` bits as a number."""
        self.left -= count
        if self.left < 0:
            raise ValueError("cut off")
        return self.value >> self.left & ((1 << count) - 1)
