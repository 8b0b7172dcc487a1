"""Top layers that are run apart from the rest of an encoder."""

from pathlib import Path

import pytest

from ner_cl.errors import ModelError
from ner_cl.model.subnetworks.trunk import top_layers
from tests.strategies.test_das import KINDS, of_kind
from tests.tiny import tiny_encoder


def test_a_convolution_between_layers_is_not_left_out_in_silence(tmp_path: Path) -> None:
    """That of the large DeBERTa-v2 encoders stands behind their first layer."""
    config = KINDS["deberta-v3"]()
    config.update({"conv_kernel_size": 3, "conv_act": "gelu"})
    encoder = of_kind(tiny_encoder(tmp_path), config).encoder
    assert len(top_layers(encoder, 1)) == 1
    for count in (0, 2, 3):
        with pytest.raises(ModelError, match=r"a convolution behind its first layer, .* give them fewer than its 2"):
            top_layers(encoder, count)
