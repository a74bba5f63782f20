"""Qwen3-VL on one page: encode pictures and clips, run packed rows, compute logits where they are wanted."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.batch import Batch, PatchBatch, VisionTokens
from foveal.config import ModelConfig
from foveal.model.attention import KVCache
from foveal.model.linear import PackedEmbedding
from foveal.model.pieces import Piece, encode_in_pieces
from foveal.model.text import TextModel
from foveal.model.vision import VisionModel
from foveal.patches import Patches

__all__ = ["KVCache", "Qwen3VL"]


class Qwen3VL(nn.Module):
    """The model, dense or mixture of experts, for pictures and clips, for training and serving: the config decides.

    It sees tensors only: no request, no file, no tokenizer. Parameters carry the checkpoint's own names.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.kv_cache: torch.dtype | None = None  # what new caches hold; None: see `cache_dtype`
        # Takes the encoder's weights out of memory until it is used again; quantize.py sets it where they are mapped.
        self.rest_encoder: Callable[[], None] | None = None
        self.visual = VisionModel(config.vision)
        self.language_model = TextModel(config.text, config.vision.tap_layers)
        self.lm_head: nn.Module | None = None
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.text.hidden_size, config.text.vocab_size, bias=False)

    @property
    def device(self) -> torch.device:
        return self.language_model.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.language_model.norm.weight.dtype  # of all weights but packed ones

    @property
    def cache_dtype(self) -> torch.dtype:
        """What a new cache holds: as `kv_cache` says, else the weights' dtype, beside packed weights bfloat16.

        At 2,000 tokens a float32 cache of the 2B shape would be a quarter more to read beside 8-bit weights.
        """
        packed = isinstance(self.language_model.embed_tokens, PackedEmbedding)
        return self.kv_cache or (torch.bfloat16 if packed else self.dtype)

    def encode(self, media: Sequence[Patches] | PatchBatch) -> VisionTokens:
        """Turn the patches of pictures and clips into vision tokens, all media in one pass."""
        if not isinstance(media, PatchBatch):
            media = PatchBatch.pack(media, self.config.vision, self.device)
        return self.visual(media)

    def encode_in_pieces(self, media: Sequence[Patches] | PatchBatch) -> Generator[Piece, int, VisionTokens]:
        """Do what `encode` does in pieces: yield what comes next, be sent how many of its rows to do, return the tokens."""
        if not isinstance(media, PatchBatch):
            media = PatchBatch.pack(media, self.config.vision, self.device)
        return encode_in_pieces(self.visual, media)

    def forward(self, batch: Batch, caches: Sequence[KVCache] | None = None) -> Tensor:
        """Run packed rows. With caches (one a sequence) the rows continue what those hold, and are added to them.

        Return logits of `batch.output_rows` (all rows when None), (O, R), in the weights' dtype.
        """
        return self.logits(self.hidden(batch, caches))

    def hidden(self, batch: Batch, caches: Sequence[KVCache] | None = None) -> Tensor:
        """Run packed rows; return the normed hidden states of `batch.output_rows`, (O, D)."""
        hidden = self.language_model(batch, caches)
        return hidden if batch.output_rows is None else hidden[batch.output_rows]

    def logits(self, hidden: Tensor) -> Tensor:
        """Score the vocabulary for hidden states (O, D). Return (O, R)."""
        if self.lm_head is not None:
            scores: Tensor = self.lm_head(hidden)
            return scores
        table = self.language_model.embed_tokens
        return table.score(hidden) if isinstance(table, PackedEmbedding) else F.linear(hidden, table.weight)

    def new_cache(self, capacity: int = 256) -> KVCache:
        """Make an empty cache of `cache_dtype` for one request."""
        text = self.config.text
        return KVCache(
            text.num_hidden_layers, text.num_key_value_heads, text.head_dim,
            dtype=self.cache_dtype, device=self.device, capacity=capacity,
        )  # fmt: skip

    @torch.no_grad()
    def init_weights(self, seed: int = 0) -> None:
        """Fill all parameters for training from scratch: normal of 0.02, norms one, biases zero."""
        generator = torch.Generator(device="cpu").manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1.0)
            else:
                values = torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, 0.02, generator=generator)
                parameter.copy_(values)
