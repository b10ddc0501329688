"""Where the network looks: square crops of resized frames. Source: mmaction2's CenterCrop and ThreeCrop."""


def crop_corners(height: int, width: int, size: int, num_crops: int) -> list[tuple[int, int]]:
    """Return (top, left) of each crop of ``size`` pixels.

    One crop is the centre; three are left, right, centre of a landscape frame, top, bottom, centre of a portrait one.
    """
    top, left = (height - size) // 2, (width - size) // 2
    if num_crops == 1:
        return [(top, left)]
    if width >= height:
        return [(top, 0), (top, 2 * left), (top, left)]  # as there, a pixel before the edge where the rest is odd
    return [(0, left), (2 * top, left), (top, left)]


def centre(height: int, width: int, size: int) -> tuple[slice, slice]:
    """Return the rows and columns of the centre crop of ``size`` pixels."""
    ((top, left),) = crop_corners(height, width, size, 1)
    return slice(top, top + size), slice(left, left + size)
