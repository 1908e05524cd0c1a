"""Attention over packed rows: each row by itself, so that none sees another and none pays for another's length.

transformers lets a packed batch through its usual kernels with one mask over all of it: 8 rows of 70 tokens cost
560 x 560 scores a head instead of 8 x 70 x 70. Here the rows' limits (`cu_seq_lens_q`, as FlashAttention takes
them) cut the batch before the scores are computed. A batch without limits (padded rows, generation) takes the
same arithmetic with transformers' own mask.
"""

from forge.errors import BAD_INPUT, ForgeError

NAME = "rows"


def register() -> None:
    """Make `attn_implementation="rows"` known to transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def forward(
    module,
    query,
    key,
    value,
    attention_mask,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q=None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux=None,
    **_: object,
):
    """Output (batch, tokens, heads, width) for `query` (batch, heads, tokens, width), `key` and `value` of fewer heads.

    `cu_seq_lens_q`: where the rows of a packed batch (of batch size 1) begin, and the end of the last. Raises
    ForgeError (2) for attention with sinks.
    """
    import torch

    if s_aux is not None:
        raise ForgeError(
            "the base's attention has sinks, which training.attention: rows does not compute",
            "set training.attention: eager and training.packing: false (not tried), or choose another base",
            BAD_INPUT,
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    rate = dropout if module.training else 0.0
    if cu_seq_lens_q is None or query.shape[0] != 1:
        mask = None if attention_mask is None else attention_mask[..., : key.shape[-2]]
        return _attend(query, key, value, mask, scale, rate, sliding_window, softcap), None
    limits = cu_seq_lens_q.tolist()
    # Split, not sliced: each slice's gradient would be as long as the whole batch, and zero outside its row.
    lengths = [end - begin for begin, end in zip(limits, limits[1:], strict=False)]
    rows = [
        _attend(*parts, None, scale, rate, sliding_window, softcap)
        for parts in zip(*(part.split(lengths, dim=2) for part in (query, key, value)), strict=True)
    ]
    return torch.cat(rows, dim=1), None


def _attend(query, key, value, mask, scale: float, rate: float, window: int | None, softcap: float | None):
    """Causal attention; on a GPU by PyTorch's fused kernel.

    On the CPU the backward pass of that kernel takes a third of a step: 8 rows of 70 tokens took 2.6 s with it and
    1.7 s with plain matrix products.
    """
    import torch
    from torch.nn import functional

    batch, heads, tokens, width = query.shape
    known = key.shape[-2]
    if mask is None and window is not None and known > window:
        mask = _band(tokens, known, window, query.device)
    if query.is_cuda and softcap is None:
        output = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=rate,
            is_causal=mask is None and tokens > 1,
            scale=scale,
            enable_gqa=heads != key.shape[1],
        )
        return output.transpose(1, 2)
    if mask is None and tokens > 1:
        mask = _band(tokens, known, known + 1, query.device)
    grouped = query.reshape(batch, key.shape[1], -1, tokens, width)
    scores = torch.matmul(grouped, key.unsqueeze(2).transpose(-1, -2)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        mask = mask.unsqueeze(2) if mask.dim() == 4 else mask
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = functional.dropout(weights, p=rate, training=rate > 0)
    output = torch.matmul(weights, value.unsqueeze(2))
    return output.reshape(batch, heads, tokens, width).transpose(1, 2)


def _band(tokens: int, known: int, window: int, device):
    """True where a token may look: itself and the `window` - 1 tokens before it."""
    import torch

    place = torch.arange(known - tokens, known, device=device)[:, None] - torch.arange(known, device=device)[None, :]
    return (place >= 0) & (place < window)
