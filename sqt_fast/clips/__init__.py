"""From decoded frames to what the network takes: which clips, resized, cropped, squeezed, batched."""
