"""The eager network: the model's own numbers, folded."""

import torch
from torch import Tensor

from sqt_fast.network.model import SqueezeTime
from tests.test_backends import BATCH, eager


def test_eager_equals_the_network(tiny_model: SqueezeTime, network_clips: Tensor) -> None:
    backend = eager(tiny_model)
    logits, embeddings = backend.run(network_clips)
    with torch.inference_mode():
        torch.testing.assert_close(logits, tiny_model.logits(network_clips), rtol=0, atol=1e-5)
        torch.testing.assert_close(embeddings, tiny_model.embed(network_clips), rtol=0, atol=1e-5)
    assert logits.dtype == embeddings.dtype == torch.float32
    assert logits.shape == (BATCH, 7)
    assert embeddings.shape == (BATCH, tiny_model.config.feature_channels)
