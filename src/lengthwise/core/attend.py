"""Exact partial attention and the merge of partials: the one operation that every stack is made of.

A partial is attention over a *set* of keys, `(out, logsumexp)`. Two partials over disjoint sets A and B of the
same queries merge to the attention over their union:

    lse = log(exp(lse_A) + exp(lse_B)),   out = exp(lse_A - lse) out_A + exp(lse_B - lse) out_B

(online softmax, as in FlashAttention, arXiv 2205.14135). `naive` is the oracle; `partial` is what runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Partial = tuple[Tensor, Tensor]

_CPU_FLASH: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_NAIVE_ROWS = 256  # query rows per step of the naive path: bounds its float32 score matrix


def naive(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, mask: Tensor | None = None, softcap: float | None = None
) -> Partial:
    """Softmax attention in float32, for any device and head dimension.

    q [Hq, C, D], k [Hkv, S, D], v [Hkv, S, Dv]; `mask` [C, S] is True where a query may look. Hq is a multiple of Hkv.
    Returns out [Hq, C, Dv] float32 and logsumexp [Hq, C] float32; a query that sees nothing gets out 0 and -inf.
    """
    heads, rows, dim = q.shape
    groups = heads // k.shape[0]
    qf = q.reshape(k.shape[0], groups, rows, dim).float() * scale
    scores = torch.einsum("hgcd,hsd->hgcs", qf, k.float())
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - torch.where(lse.isinf(), 0.0, lse)[..., None])
    # a masked key has weight 0, but 0 * NaN would still poison the sum
    out = torch.einsum("hgcs,hsd->hgcd", weights, v.float() if mask is None else v.float().nan_to_num())
    return out.reshape(heads, rows, -1), lse.reshape(heads, rows)


def partial(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    mask: Tensor | None = None,
    causal: bool = False,
    softcap: float | None = None,
) -> Partial:
    """As `naive`, through the fastest exact path there is here. `causal`: C == S and query i sees keys 0..i."""
    heads, rows, dim = q.shape
    kv_heads = k.shape[0]
    if rows == 1 and mask is None and softcap is None:
        return _one_row(q, k, v, scale)
    fast = _CPU_FLASH is not None and q.device.type == "cpu" and softcap is None and v.shape[-1] == dim
    if not fast:
        return _chunked(q, k, v, scale=scale, mask=mask, causal=causal, softcap=softcap)
    groups = heads // kv_heads
    if causal:  # is_causal counts rows, so the group cannot be folded into them
        out, lse = _CPU_FLASH(
            q[None], k.repeat_interleave(groups, 0)[None], v.repeat_interleave(groups, 0)[None], 0.0, True, scale=scale
        )
        return out[0], lse[0]
    folded = q.reshape(1, kv_heads, groups * rows, dim)
    bias = None
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, float("-inf"))
        bias = bias.repeat(groups, 1)[None, None]
    out, lse = _CPU_FLASH(folded, k[None], v[None], 0.0, False, attn_mask=bias, scale=scale)
    out, lse = out.reshape(heads, rows, dim), lse.reshape(heads, rows)
    if mask is not None and not bool((sees := mask.any(-1)).all()):
        out = out.masked_fill(~sees[None, :, None], 0.0)
        lse = lse.masked_fill(~sees[None], float("-inf"))
    return out, lse


def merge(partials: Sequence[Partial]) -> Partial:
    """The attention over the union of disjoint key sets. Associative; a partial with logsumexp -inf is neutral."""
    if len(partials) == 1:
        return partials[0]
    lse = torch.stack([p[1] for p in partials])
    total = torch.logsumexp(lse, dim=0)
    share = torch.exp(lse - torch.where(total.isinf(), 0.0, total))
    out = sum((w[..., None] * p[0].float() for w, p in zip(share, partials, strict=True)), start=torch.zeros(()))
    return out, total


def weights(q: Tensor, k: Tensor, lse: Tensor, *, scale: float, mask: Tensor | None, softcap: float | None) -> Tensor:
    """The softmax weights [Hq, C, S] float32 of one key set, given the logsumexp [Hq, C] over *all* key sets."""
    found = logits(q, k, scale=scale, mask=mask, softcap=softcap)
    return torch.exp(found - torch.where(lse.isinf(), 0.0, lse)[..., None])


def logits(q: Tensor, k: Tensor, *, scale: float, mask: Tensor | None = None, softcap: float | None = None) -> Tensor:
    """The scores [Hq, C, S] float32 of one key set, -inf where `mask` [C, S] is False."""
    heads, rows, dim = q.shape
    qf = q.reshape(k.shape[0], -1, dim).float() * scale
    scores = (qf @ k.float().transpose(1, 2)).view(heads, rows, -1)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores


def _one_row(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Partial:
    """Decode: two small matrix products read each key once for its whole GQA group."""
    heads, _, dim = q.shape
    scores = (q.reshape(k.shape[0], -1, dim) @ k.transpose(1, 2)).float() * scale
    lse = torch.logsumexp(scores, dim=-1)
    out = torch.exp(scores - lse[..., None]).to(v.dtype) @ v
    return out.reshape(heads, 1, -1), lse.reshape(heads, 1)


def _chunked(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, mask: Tensor | None, causal: bool, softcap: float | None
) -> Partial:
    outs: list[Tensor] = []
    lses: list[Tensor] = []
    for a in range(0, q.shape[1], _NAIVE_ROWS):
        b = min(q.shape[1], a + _NAIVE_ROWS)
        if causal:
            rule: Tensor | None = torch.ones(b - a, b, dtype=torch.bool, device=q.device).tril(a)
            out, lse = naive(q[:, a:b], k[:, :b], v[:, :b], scale=scale, mask=rule, softcap=softcap)
        else:
            rule = None if mask is None else mask[a:b]
            out, lse = naive(q[:, a:b], k, v, scale=scale, mask=rule, softcap=softcap)
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs, 1), torch.cat(lses, 1)
