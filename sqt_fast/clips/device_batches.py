"""Batches squeezed on the GPU: clips travel as bytes, a quarter or half of what they are squeezed; crops share them."""

import logging
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import groupby

import torch
from torch import Tensor

from sqt_fast.clips.batches import View
from sqt_fast.clips.crops import crop_corners
from sqt_fast.clips.gather import Clip
from sqt_fast.config import ClipProtocol
from sqt_fast.errors import BackendError, first_line
from sqt_fast.kernels.squeeze import squeeze
from sqt_fast.kernels.squeeze_cuda import squeeze_cuda
from sqt_fast.network.model import INPUT_CHANNELS
from sqt_fast.video.sampling import NUM_FRAMES

log = logging.getLogger(__name__)

Squeeze = Callable[..., Tensor]
Lend = Callable[[tuple[int, ...]], Tensor | None]


def _lend_nothing(shape: tuple[int, ...]) -> None:
    del shape


def squeezers(device: str) -> tuple[Squeeze, ...]:
    """Return the kernels that may run on ``device``, the fastest first.

    On an H100 654 us against 1424, before Triton's read 16 bytes at once; not measured since.
    """
    return (squeeze_cuda, squeeze) if device.startswith("cuda") and find_spec("cupy") is not None else (squeeze,)


class DeviceBatches:
    """Carry bytes to the GPU and squeeze there. dtype: the network's; device: cuda, or cpu under the interpreter.

    lend: gives the memory that the network reads a batch of a shape from, or None; what is squeezed straight into it
    need not be copied. A batch is then good until the next is made.

    Bytes are sent on a stream of their own, beside what the GPU computes of the batch before; only the squeeze waits
    for them, on the current stream. So nothing here may wait for a GPU: what is sent lies in pinned memory.

    The first kernel of ``squeezers`` that runs is taken: one clip is tried at once. Raises BackendError if none does.
    """

    def __init__(self, protocol: ClipProtocol, dtype: torch.dtype, device: str, lend: Lend = _lend_nothing) -> None:
        self.protocol, self.dtype, self.device, self.lend = protocol, dtype, device, lend
        self.is_cuda = device.startswith("cuda")
        self.sending = torch.cuda.Stream(device) if self.is_cuda else None  # type: ignore[no-untyped-call]
        blank = torch.zeros((protocol.crop_size, protocol.crop_size, 3), dtype=torch.uint8)
        reasons = []
        for self.squeeze in squeezers(device):
            try:
                self.batch(list(self.views(Clip(0, [blank] * NUM_FRAMES, 0))), protocol.num_crops)
            except Exception as error:  # compilers and drivers raise what they like
                log.debug("a squeeze kernel does not run", exc_info=True)
                reasons.append(first_line(error))
            else:
                return
        raise BackendError("; ".join(reasons))

    def views(self, clip: Clip) -> Iterator[View]:
        """See Batches. All crops share the bytes, which lie on the GPU, or where it can fetch them by itself."""
        height, width, _ = clip.images[0].shape
        frames = self._together(clip.images)
        size = self.protocol.crop_size
        for crop, (top, left) in enumerate(crop_corners(height, width, size, self.protocol.num_crops)):
            yield View(clip.clip_index, crop, frames, clip.missing, top, left)

    def _together(self, images: list[Tensor]) -> Tensor:
        """Return images (H, W, 3) as one tensor (16, H, W, 3): on the GPU if one of them is.

        Some frames of a video may have been decoded there and some on the CPU.
        """
        shape = (len(images), *images[0].shape)
        decoded_there = next((image for image in images if image.device.type != "cpu"), None)
        if decoded_there is None:
            frames = torch.empty(shape, dtype=torch.uint8, pin_memory=self.is_cuda)
            return torch.stack(images, out=frames)
        frames = decoded_there.new_empty(shape)
        for frame, image in zip(frames, images, strict=True):
            frame.copy_(image)  # the one thing that may cross from device to device
        return frames

    def batch(self, views: list[View], batch_size: int) -> Tensor:
        """See Batches. One launch for neighbours of one size: most often, for all."""
        size = self.protocol.crop_size
        shape = batch_size, INPUT_CHANNELS, size, size
        if (batch := self.lend(shape)) is None:
            batch = torch.empty(shape, dtype=self.dtype, device=self.device, memory_format=torch.channels_last)
        batch[len(views) :].zero_()
        start = 0
        for _, group in groupby(views, key=lambda view: view.clip.shape):
            members = list(group)
            self._squeeze(members, batch[start : start + len(members)])
            start += len(members)
        return batch

    def _squeeze(self, views: list[View], out: Tensor) -> None:
        """Squeeze views of frames of one size into ``out``; frames that several share go to the GPU once."""
        clips = {id(view.clip): view.clip for view in views}
        places = {key: place for place, key in enumerate(clips)}
        length = views[0].clip.shape[0]
        first = torch.tensor([places[id(view.clip)] * length for view in views], dtype=torch.int32)
        host = [
            first[:, None] + torch.arange(length, dtype=torch.int32),
            torch.tensor([[view.top, view.left] for view in views], dtype=torch.int32),
        ]
        with torch.cuda.stream(self.sending):  # None, on a CPU, changes nothing
            frames = torch.empty((len(clips), *views[0].clip.shape), dtype=torch.uint8, device=self.device)
            for target, clip in zip(frames, clips.values(), strict=True):
                if clip.device.type == "cpu":
                    target.copy_(clip, non_blocking=True)
            index, corners = (self._sent(tensor) for tensor in host)
        self._take_over(frames, index, corners)
        for target, clip in zip(frames, clips.values(), strict=True):
            if clip.device.type != "cpu":  # decoded on the GPU, on the current stream
                target.copy_(clip)
        self.squeeze(
            frames.flatten(0, 1), index, corners=corners, size=self.protocol.crop_size, dtype=self.dtype, out=out
        )

    def _sent(self, tensor: Tensor) -> Tensor:
        """Send a small tensor. From memory that is not pinned, that would wait for all that the stream has to do."""
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.is_cuda else tensor

    def _take_over(self, *tensors: Tensor) -> None:
        """Let the current stream wait for what is sent, and keep its memory until that stream is done with it."""
        if self.sending is None:
            return
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.sending)
        for tensor in tensors:
            tensor.record_stream(current)
