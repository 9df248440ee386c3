"""How each parameter of the decoder lies in the tensors of a class of ``transformers``.

A rule is both directions at once, so export and import cannot disagree. Rotary embedding is in half-split pairs here and in
most classes; DeepSeek's classes rotate neighbouring channels, so that rows of queries and rotary keys change places.

Legend: D hidden size, V vocabulary, H query heads, G kv groups, R = H/G, d head size, E experts, I expert width, W dense width;
X any width; n channels without and r with rotation of a latent head.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from workers.hf.errors import NotExportable
from workers.hf.families import Family, heads_of
from workers.model.spec import ModelSpec

Tensors = Sequence[torch.Tensor]


@dataclass(frozen=True)
class Rule:
    """A parameter ``name`` of ``shape`` here is the tensors ``theirs`` there."""

    name: str | None
    """None: there are tensors there for what does not exist here."""
    shape: tuple[int, ...]
    theirs: tuple[str, ...]
    split: Callable[[torch.Tensor], Tensors]
    join: Callable[[Tensors], torch.Tensor]


def rules(spec: ModelSpec, vocab_size: int, family: Family, *, interleaved: bool = True) -> Iterator[Rule]:
    """In the order of the layers. ``interleaved``: whether a DeepSeek class rotates neighbouring channels."""
    D = spec.hidden_size
    yield _same("embedding", "model.embed_tokens.weight", vocab_size, D)
    for layer in range(spec.num_hidden_layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        yield _same(f"{ours}.attention_norm.weight", f"{theirs}.input_layernorm.weight", D)
        attention = partial(_latent, interleaved=interleaved) if spec.attention == "mla" else _grouped
        yield from attention(spec, f"{ours}.attention", f"{theirs}.self_attn")
        yield _same(f"{ours}.feed_forward_norm.weight", f"{theirs}.post_attention_layernorm.weight", D)
        feed_forward = (f"{ours}.feed_forward", f"{theirs}.mlp")
        if layer < spec.dense_layers:
            yield from _swiglu(*feed_forward, D, spec.intermediate_size)
        else:
            yield from _experts(spec, family, *feed_forward)
    yield _same("norm.weight", "model.norm.weight", D)
    if not spec.tie_word_embeddings:
        yield _same("head", "lm_head.weight", vocab_size, D)


def _same(name: str, theirs: str, *shape: int) -> Rule:
    return Rule(name, shape, (theirs,), lambda x: [x], lambda parts: parts[0])


def _grouped(spec: ModelSpec, ours: str, theirs: str) -> Iterator[Rule]:
    D, H, G, d = spec.hidden_size, heads_of(spec), spec.num_key_value_heads, spec.resolved_head_dim
    R = H // G

    def split(x: torch.Tensor) -> Tensors:
        q_GRdD, k_GdD, v_GdD = x.view(G, R + 2, d, D).split([R, 1, 1], dim=1)
        return [q_GRdD.reshape(H * d, D), k_GdD.reshape(G * d, D), v_GdD.reshape(G * d, D)]

    def join(parts: Tensors) -> torch.Tensor:
        return torch.cat([part.view(G, -1, d, D) for part in parts], dim=1).view(-1, D)

    yield Rule(f"{ours}.qkv", (G * (R + 2) * d, D), tuple(f"{theirs}.{x}_proj.weight" for x in "qkv"), split, join)
    if spec.qk_norm:
        widths = {"q": d, "k": d} if spec.qk_norm == "head" else {"q": H * d, "k": G * d}
        for x, width in widths.items():
            yield _same(f"{ours}.{x}_norm.weight", f"{theirs}.{x}_norm.weight", width)
    yield _same(f"{ours}.out", f"{theirs}.o_proj.weight", D, H * d)


def _latent(spec: ModelSpec, ours: str, theirs: str, *, interleaved: bool) -> Iterator[Rule]:
    D, H, rank, latent = spec.hidden_size, heads_of(spec), spec.q_lora_rank, spec.kv_lora_rank
    n, r, v = spec.qk_nope_head_dim, spec.qk_rope_head_dim, spec.v_head_dim
    rotated = partial(_rotated, pairs=r // 2, interleaved=interleaved)
    if rank is None:
        yield rotated(_same(f"{ours}.q", f"{theirs}.q_proj.weight", H * (n + r), D), heads=H)
    else:
        yield _same(f"{ours}.q_down", f"{theirs}.q_a_proj.weight", rank, D)
        yield _same(f"{ours}.q_norm.weight", f"{theirs}.q_a_layernorm.weight", rank)
        yield rotated(_same(f"{ours}.q_up", f"{theirs}.q_b_proj.weight", H * (n + r), rank), heads=H)
    yield rotated(_same(f"{ours}.kv_down", f"{theirs}.kv_a_proj_with_mqa.weight", latent + r, D), heads=1)
    yield _same(f"{ours}.kv_norm.weight", f"{theirs}.kv_a_layernorm.weight", latent)
    yield _same(f"{ours}.kv_up", f"{theirs}.kv_b_proj.weight", H * (n + v), latent)
    yield _same(f"{ours}.out", f"{theirs}.o_proj.weight", D, H * v)


def _rotated(rule: Rule, *, heads: int, pairs: int, interleaved: bool) -> Rule:
    """Of each of ``heads`` blocks of rows the last ``2 * pairs`` are rotated: (i, i + pairs) here, (2i, 2i + 1) there."""
    if not interleaved:
        return rule

    def swapped(x: torch.Tensor, *layout: int) -> torch.Tensor:
        kept, rope = x.unflatten(0, (heads, -1)).tensor_split([-2 * pairs], dim=1)
        return torch.cat([kept, rope.unflatten(1, layout).transpose(1, 2).flatten(1, 2)], dim=1).flatten(0, 1)

    def split(x: torch.Tensor) -> Tensors:
        return [swapped(x, 2, pairs)]

    def join(parts: Tensors) -> torch.Tensor:
        return swapped(parts[0], pairs, 2)

    return Rule(rule.name, rule.shape, rule.theirs, split, join)


def _swiglu(ours: str, theirs: str, D: int, W: int) -> Iterator[Rule]:
    def split(x_W2D: torch.Tensor) -> Tensors:
        return x_W2D.unbind(1)

    def join(parts: Tensors) -> torch.Tensor:
        return torch.stack(list(parts), dim=1)

    names = tuple(f"{theirs}.{x}_proj.weight" for x in ("gate", "up"))
    yield Rule(f"{ours}.gate_up", (W, 2, D), names, split, join)
    yield _same(f"{ours}.down", f"{theirs}.down_proj.weight", D, W)


def _experts(spec: ModelSpec, family: Family, ours: str, theirs: str) -> Iterator[Rule]:
    D, E, I = spec.hidden_size, spec.n_routed_experts, spec.moe_intermediate_size  # noqa: E741
    yield _same(f"{ours}.router", f"{theirs}.gate.weight", E, D)
    if spec.scoring_func == "sigmoid":
        yield _same(f"{ours}.bias", f"{theirs}.gate.e_score_correction_bias", E)
    else:
        yield Rule(f"{ours}.bias", (E,), (), _nothing, lambda parts: torch.zeros(E))

    def split(x_EI2D: torch.Tensor) -> Tensors:
        return [part for x_I2D in x_EI2D for part in x_I2D.unbind(1)]

    def join(parts: Tensors) -> torch.Tensor:
        return torch.stack([torch.stack(list(parts[i : i + 2]), dim=1) for i in range(0, 2 * E, 2)])

    names = tuple(f"{theirs}.experts.{e}.{x}_proj.weight" for e in range(E) for x in ("gate", "up"))
    yield Rule(f"{ours}.gate_up", (E, I, 2, D), names, split, join)
    down = tuple(f"{theirs}.experts.{e}.down_proj.weight" for e in range(E))
    yield Rule(f"{ours}.down", (E, D, I), down, torch.unbind, lambda parts: torch.stack(list(parts)))
    if spec.n_shared_experts:
        yield from _swiglu(f"{ours}.shared", f"{theirs}.shared_experts", D, spec.n_shared_experts * I)
    elif family != "olmoe":
        # The class has shared experts of no width.
        names = tuple(f"{theirs}.shared_experts.{x}_proj.weight" for x in ("gate", "up", "down"))
        empty = [torch.zeros(0, D), torch.zeros(0, D), torch.zeros(D, 0)]
        yield Rule(None, (), names, lambda _: empty, lambda parts: torch.empty(0))


def _nothing(bias_E: torch.Tensor) -> Tensors:
    """The classes with softmax scores add no bias to them."""
    if not bias_E.is_meta and bias_E.any():
        raise NotExportable(
            "no class of transformers adds a balancing bias to softmax scores, and this model was trained with one",
            pointer="/model/router_bias_update_rate",
        )
    return []
