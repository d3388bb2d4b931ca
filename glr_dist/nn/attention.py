"""Multi-head attention made of linear layers.

Shapes: N examples, L queries, S keys, E = h·d features in h heads; q [N, h, L, d], k and v [N, h, S, d],
weights [N, h, L, S].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glr_dist.errors import UserError
from glr_dist.nn.dropout import Dropout
from glr_dist.nn.same_state import Part, SameState, Ties, linear


class Attention(SameState):
    """An `nn.MultiheadAttention` whose four products are `nn.Linear` calls: q_proj, k_proj, v_proj and out_proj.

    softmax(q kᵀ / √d + mask) v, for each head. The logits of all four are batch first, [N, L, E], for either layout of
    the inputs. A query that no key may answer has the weights 0, where torch gives 0 or NaN.

    Args:
        attention: the module to replace.
        name: its name, for errors.
        ties: parameters of the modules replaced before.
    """

    # torch's transformer layers read these to decide for their fused kernels, which would pass the sites by.
    in_proj_weight: Tensor | None = None
    in_proj_bias: Tensor | None = None
    _qkv_same_embed_dim = False

    def __init__(self, attention: nn.MultiheadAttention, name: str, ties: Ties) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = attention.embed_dim, attention.num_heads, attention.head_dim
        self.kdim, self.vdim, self.dropout = attention.kdim, attention.vdim, attention.dropout
        self.batch_first, self.add_zero_attn = attention.batch_first, attention.add_zero_attn
        width, bias = self.embed_dim, attention.in_proj_bias is not None
        self.q_proj = linear(width, width, bias)
        self.k_proj = linear(self.kdim, width, bias)
        self.v_proj = linear(self.vdim, width, bias)
        self.out_proj = linear(width, width, bias)
        self.bias_k, self.bias_v = attention.bias_k, attention.bias_v
        self.weights_dropout = Dropout(self.dropout)
        names = ("q_proj", "k_proj", "v_proj")
        if attention.in_proj_weight is not None:
            self.layout = {"in_proj_weight": tuple(Part(f"{projection}.weight", width) for projection in names)}
        else:
            self.layout = {f"{projection}_weight": (Part(f"{projection}.weight"),) for projection in names}
        if bias:
            self.layout |= {"in_proj_bias": tuple(Part(f"{projection}.bias", width) for projection in names)}
        self.take(name, dict(attention.named_parameters(remove_duplicate=False)), ties)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the outputs and the weights (None unless wanted); takes the arguments of `nn.MultiheadAttention`.

        `is_causal` is a hint of torch's that changes nothing here: the mask itself is applied.

        Raises:
            UserError: a nested tensor, a mask of another shape, or `is_causal` without a mask.
        """
        if query.is_nested:
            raise UserError("MultiheadAttention: nested tensors are not supported; pad them and pass key_padding_mask")
        batch = 0 if self.batch_first else 1
        if key.shape[:-1] != value.shape[:-1] or (query.dim() == 3 and query.shape[batch] != key.shape[batch]):
            sizes = ", ".join(str(list(x.shape)) for x in (query, key, value))
            raise UserError(f"MultiheadAttention: query, key and value have shapes {sizes}, which do not fit")
        if is_causal and attn_mask is None:
            raise UserError("MultiheadAttention: is_causal is a hint only; pass the causal attn_mask too")
        inputs = query, key, value
        if batched := query.dim() == 3:
            inputs = inputs if self.batch_first else tuple(x.transpose(0, 1) for x in inputs)  # type: ignore[assignment]
        else:
            inputs = tuple(x.unsqueeze(0) for x in inputs)  # type: ignore[assignment]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        q, k, v = self.q_proj(inputs[0]), self.k_proj(inputs[1]), self.v_proj(inputs[2])
        mask = self._mask(q, k, attn_mask, key_padding_mask)
        weights = self._weights(self._heads(q), self._heads(self._extended(k, self.bias_k)), mask)
        mixed = weights @ self._heads(self._extended(v, self.bias_v))  # [N, h, L, d]
        outputs = self.out_proj(mixed.transpose(1, 2).flatten(2))
        wanted = (weights.mean(1) if average_attn_weights else weights) if need_weights else None
        if not batched:
            return outputs.squeeze(0), None if wanted is None else wanted.squeeze(0)
        return outputs if self.batch_first else outputs.transpose(0, 1), wanted

    def _heads(self, x: Tensor) -> Tensor:
        """Splits features [N, S, E] into heads [N, h, S, d]."""
        return x.reshape(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)

    def _extended(self, x: Tensor, learned: Tensor | None) -> Tensor:
        """Appends the learned position and the position of zeros to keys or values [N, S, E], if there are any."""
        extra = [] if learned is None else [learned.expand(x.shape[0], 1, -1)]
        if self.add_zero_attn:
            extra.append(x.new_zeros(x.shape[0], 1, x.shape[2]))
        return torch.cat((x, *extra), 1) if extra else x

    def _mask(self, q: Tensor, k: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None) -> Tensor | None:
        """Returns what is added to the scores, in a shape that broadcasts to [N, h, L, S]; None without masks.

        Args:
            q: queries [N, L, E].
            k: keys [N, S, E].
            attn_mask: [L, S] or [N·h, L, S].
            key_padding_mask: [N, S].
        """
        if attn_mask is None and key_padding_mask is None:
            return None
        (n, length, _), source, heads = q.shape, k.shape[1], self.num_heads
        views: dict[str, dict[tuple[int, ...], tuple[int, ...]]] = {
            "attn_mask": {
                (length, source): (1, 1, length, source),
                (n * heads, length, source): (n, heads, length, source),
            },
            "key_padding_mask": {(n, source): (n, 1, 1, source)},
        }
        total = None
        for (what, allowed), mask in zip(views.items(), (attn_mask, key_padding_mask), strict=True):
            if mask is None:
                continue
            view = allowed.get(tuple(mask.shape))
            if view is None:
                known = " or ".join(str(list(shape)) for shape in allowed)
                raise UserError(f"MultiheadAttention: {what} has shape {list(mask.shape)}, must have {known}")
            if mask.dtype != torch.bool and not mask.is_floating_point():
                raise UserError(f"MultiheadAttention: {what} is {mask.dtype}, must be bool or floating point")
            if mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask, -torch.inf)
            mask = mask.reshape(view)
            total = mask if total is None else total + mask
        assert total is not None
        return F.pad(total, (0, (self.bias_k is not None) + self.add_zero_attn))

    def _weights(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        """Returns the attention weights [N, h, L, S] after dropout."""
        scores = q @ k.transpose(2, 3) / self.head_dim**0.5
        if mask is None:
            return self.weights_dropout(scores.softmax(-1))  # type: ignore[no-any-return]
        idle = mask.isneginf().all(-1, keepdim=True)
        weights = (scores + mask.masked_fill(idle, 0)).softmax(-1).masked_fill(idle, 0)
        return self.weights_dropout(weights)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, {self.num_heads}, batch_first={self.batch_first}"
