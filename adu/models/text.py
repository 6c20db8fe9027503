"""open_clip's text towers, opened at the places where learned context goes in.

Tensor names carry their shape: C classes, T tokens, K context tokens, V text token width,
E feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adu.errors import UserError
from adu.models.backbone import Backbone
from adu.models.blocks import run_block

# Block number to the context_KV that it gets; None leaves what the block before has made.
ContextSource = Callable[[int], Tensor | None]


class PromptedText:
    """The classes' captions with room for ``n_ctx`` learned tokens before the class name.

    Captions read "<context> class name." as in CoOp (Zhou et al., IJCV 2022). The text tower
    stays frozen.
    """

    def __init__(self, backbone: Backbone, classes: Sequence[str], n_ctx: int) -> None:
        """Makes room.

        Raises:
            UserError: If the tower is not open_clip's own, or a caption is too long.
        """
        clip = backbone.clip
        self._tower: Any = clip if hasattr(clip, "token_embedding") else clip.text
        if not _takes_context(self._tower):
            raise UserError(
                f"backbone {backbone.name}: its text tower is a {type(self._tower).__name__}, "
                "which takes no learned context (allowed: open_clip's own text towers)"
            )
        device = self._tower.positional_embedding.device
        captions = [f"{name.replace('_', ' ')}." for name in classes]
        tokens_CT = backbone.tokenizer(captions).to(device)
        self.n_ctx = n_ctx
        # What a caption without words is made of: a start token or none, an end token, padding.
        # SigLIP's has no start, and pads with its end token.
        empty_T = backbone.tokenizer([""]).to(device)[0]
        self._padding = empty_T[-1]
        # Context goes behind the start token, where there is one.
        self._at = int(bool((tokens_CT[:, 0] == empty_T[0]).all()))
        self._n_end = int((empty_T != self._padding).sum()) - self._at
        self._check_room(tokens_CT, captions)
        self._tokens_CT = self._with_room(tokens_CT)

    @property
    def width(self) -> int:
        """V."""
        return int(self._tower.token_embedding.weight.shape[1])

    @property
    def embedding_std(self) -> float:
        """Standard deviation of the numbers in the word embeddings."""
        return float(self._tower.token_embedding.weight.std())

    @property
    def n_blocks(self) -> int:
        """Blocks of the text tower."""
        return len(self._tower.transformer.resblocks)

    def words(self, backbone: Backbone, text: str) -> Tensor:
        """Embeddings, (number of tokens, V), of the words of a text."""
        device = self._tokens_CT.device
        tokens_T = backbone.tokenizer([text]).to(device)[0]
        n_words = int((tokens_T != self._padding).sum()) - self._at - self._n_end
        return self._tower.token_embedding(tokens_T[self._at : self._at + n_words]).detach()

    def features(self, context_KV: Tensor, deeper: ContextSource | None = None) -> Tensor:
        """Unit-length text_CE of the classes, differentiable in the context.

        Args:
            context_KV: Stands in the place of word embeddings.
            deeper: Gives later blocks' context_KV, which replaces what stood there.
        """
        tower = self._tower
        x_CTV = tower.token_embedding(self._tokens_CT)
        x_CTV = self._placed(x_CTV, context_KV) + tower.positional_embedding
        mask = tower.attn_mask
        for i, block in enumerate(tower.transformer.resblocks):
            following_KV = deeper(i) if deeper is not None and i > 0 else None
            if following_KV is not None:
                x_CTV = self._placed(x_CTV, following_KV)
            x_CTV = run_block(block, x_CTV, mask)
        return F.normalize(self._pooled(x_CTV).float(), dim=-1)

    def _pooled(self, x_CTV: Tensor) -> Tensor:
        from open_clip.transformer import text_global_pool  # loaded with the model by now

        tower = self._tower
        is_clip = hasattr(tower, "text_pool_type")
        pooled_CV = text_global_pool(
            tower.ln_final(x_CTV),
            self._tokens_CT,
            tower.text_pool_type if is_clip else tower.pool_type,
            eos_token_id=getattr(tower, "text_eos_id" if is_clip else "eos_id", None),
        )
        projection = tower.text_projection
        if projection is None:
            return pooled_CV
        return (
            projection(pooled_CV) if isinstance(projection, nn.Linear) else pooled_CV @ projection
        )

    def _placed(self, x_CTV: Tensor, context_KV: Tensor) -> Tensor:
        context_CKV = context_KV.to(x_CTV.dtype).expand(len(x_CTV), -1, -1)
        before, after = x_CTV[:, : self._at], x_CTV[:, self._at + self.n_ctx :]
        return torch.cat([before, context_CKV, after], dim=1)

    def _with_room(self, tokens_CT: Tensor) -> Tensor:
        # Any word will do in the place of the context: its embedding is replaced. The caption's
        # first one is neither padding nor an end token, which pooling looks for.
        word_C1 = tokens_CT[:, self._at : self._at + 1]
        n_kept = tokens_CT.shape[1] - self.n_ctx
        parts = [tokens_CT[:, : self._at], word_C1.expand(-1, self.n_ctx)]
        return torch.cat([*parts, tokens_CT[:, self._at : n_kept]], dim=1)

    def _check_room(self, tokens_CT: Tensor, captions: list[str]) -> None:
        # Where the end token is also the padding, one of them stays.
        used_C = (tokens_CT != self._padding).sum(dim=1) + (0 if self._n_end else 1)
        longest = int(used_C.argmax())
        room = tokens_CT.shape[1] - int(used_C[longest])
        if self.n_ctx > room:
            raise UserError(
                f"text context of {self.n_ctx} tokens: caption '{captions[longest]}' leaves room "
                f"for {max(room, 0)} of {tokens_CT.shape[1]}"
            )


class TextContext(nn.Module):
    """Learned tokens before the class name, the same for all classes (CoOp's unified context).

    With a depth above 1, later blocks have learned tokens of their own in that place (IVLP:
    Khattak et al., CVPR 2023).
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: Sequence[str],
        n_ctx: int,
        init: str | None = None,
        init_std: float = 0.02,
        depth: int | None = 1,
    ) -> None:
        """Initialises the context.

        Args:
            backbone: The frozen model.
            classes: Class names.
            n_ctx: K.
            init: Words whose embeddings the context starts from, as far as they go.
            init_std: Standard deviation of the normal distribution that the rest starts from.
            depth: Blocks of the text tower, from the first on, that get learned tokens; None:
                three quarters of them.

        Raises:
            UserError: If the tower takes no context or has fewer blocks, or a caption is too long.
        """
        super().__init__()
        self.captions = PromptedText(backbone, classes, n_ctx)
        n_blocks = self.captions.n_blocks
        depth = three_quarters(n_blocks) if depth is None else depth
        if depth > n_blocks:
            raise UserError(f"text context of depth {depth}: the text tower has {n_blocks} blocks")
        tokens_KV = torch.randn(n_ctx, self.captions.width) * init_std
        if init:
            words_KV = self.captions.words(backbone, init)[:n_ctx].cpu()
            tokens_KV[: len(words_KV)] = words_KV
        self.tokens = nn.Parameter(tokens_KV)
        self.deeper = nn.ParameterList(
            nn.Parameter(torch.randn(n_ctx, self.captions.width) * init_std)
            for _ in range(depth - 1)
        )

    def forward(self) -> Tensor:
        """Unit-length text_CE of the classes."""
        return self.captions.features(self.tokens, self._deeper_at)

    def _deeper_at(self, block: int) -> Tensor | None:
        return self.deeper[block - 1] if block <= len(self.deeper) else None


def three_quarters(n_blocks: int) -> int:
    """How many blocks of a tower are prompted by default; 9 of 12, as in the paper."""
    return max(1, n_blocks * 3 // 4)


def _takes_context(tower: Any) -> bool:
    """Whether a text tower is open_clip's own, without CoCa's class token or a padding mask."""
    plain = getattr(tower, "cls_emb", None) is None and not getattr(tower, "use_pad_mask", False)
    return plain and hasattr(getattr(tower, "transformer", None), "resblocks")
