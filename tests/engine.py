from __future__ import annotations

import pytest
import torch

from kvfidelity.decoding.engine import Engine
from tests.models.tiny import tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def engine() -> Engine:
    model = tiny_llama()
    with torch.no_grad():  # wide enough that attention is not uniform
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    return Engine.from_model(model, tiny_tokenizer())
