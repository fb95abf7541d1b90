"""Attention with one more key of zero value, whose logit is each query's own: what embedded prompts amount to.

The logit depends on the query, so as an additive mask it would need a gradient, which the fused kernels refuse. On a
CPU the fused kernel's normaliser takes it in (`_Normaliser`), at the price of plain attention. Elsewhere, and where
there is dropout or a mask that learns, it is one more channel: queries ``[q, logit]``, keys ``[k, 0]`` and the extra
key ``[0, 1]``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# not part of torch's public interface, so a release without them takes the other way
FLASH: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
FLASH_BACKWARD: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)


def extra_key_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    logits: Tensor,
    *,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Attention with one more key, of zero value, that query i meets with ``logits[..., i]`` (any mask aside).

    Args:
        q, k, v: ``[B, heads, T, d]``.
        logits: broadcastable to ``[B, heads, T]``.
        mask: additive or boolean, broadcastable to ``[B, heads, T, T]``.
        dropout: of the attention weights.
        scale: of the scores, None for 1 / sqrt(d).

    Returns:
        ``[B, heads, T, d]``.

    >>> q, k, v = torch.randn(3, 1, 2, 4, 8).unbind(0)
    >>> none = extra_key_attention(q, k, v, torch.full((4,), -100.0))
    >>> torch.allclose(none, F.scaled_dot_product_attention(q, k, v), atol=1e-6)
    True
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    learns = mask is not None and (mask.requires_grad or mask.dtype == torch.bool)
    if q.device.type == "cpu" and FLASH and FLASH_BACKWARD and not dropout and not learns:
        return _Normaliser.apply(q, k, v, logits, None if mask is None else mask.to(q.dtype), scale)
    return channel_attention(q, k, v, logits, mask=mask, dropout=dropout, scale=scale)


def channel_attention(
    q: Tensor, k: Tensor, v: Tensor, logits: Tensor, *, mask: Tensor | None, dropout: float, scale: float
) -> Tensor:
    """`extra_key_attention` through `scaled_dot_product_attention`, on any device."""
    width = q.shape[-1]
    column = (logits / scale).to(q.dtype).unsqueeze(-1)
    q = torch.cat([q, column.expand(*q.shape[:-1], 1)], dim=-1)
    k = F.pad(k, (0, 1, 0, 1))
    k[..., -1, -1] = 1.0
    v = F.pad(v, (0, 1, 0, 1))
    if mask is not None:
        mask = F.pad(mask, (0, 1), value=mask.dtype == torch.bool)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)[..., :width]


class _Normaliser(torch.autograd.Function):
    """The extra key as a larger normaliser: ``Z' = Z + exp(logit)``, and the output shrinks by ``Z / Z'``.

    The kernel's backward pass recomputes the weights as ``exp(score - ln Z)`` and otherwise needs the output only.
    Given ``ln Z'`` and the shrunk output it differentiates attention with the extra key, which is never built.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, logits: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        output, normaliser = FLASH(q, k, v, attn_mask=mask, scale=scale)
        total = torch.logaddexp(normaliser, logits.to(normaliser.dtype))
        output = output * (normaliser - total).exp().unsqueeze(-1).to(output.dtype)
        ctx.save_for_backward(q, k, v, logits, mask, output, total)
        ctx.scale = scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, logits, mask, output, total = ctx.saved_tensors
        to_qkv: tuple[Tensor | None, ...] = (None, None, None)
        if any(ctx.needs_input_grad[:3]):
            to_qkv = FLASH_BACKWARD(gradient, q, k, v, output, total, 0.0, False, attn_mask=mask, scale=ctx.scale)
        to_logits = None
        if ctx.needs_input_grad[3]:  # its value is zero, so only the normaliser passes something on
            share = (logits.to(total.dtype) - total).exp()
            to_logits = -(share * (gradient * output).sum(-1)).sum_to_size(logits.shape).to(logits.dtype)
        return *to_qkv, to_logits, None, None
