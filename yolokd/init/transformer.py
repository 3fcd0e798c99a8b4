"""Solves for a student's transformer layers: attention, feed-forward networks and layer norms, part after part.

As for convolutions, every linear map is solved by least squares from what really arrives at it. Where student and
teacher are equally wide, what is solved for is the difference to the teacher's weights, so that equal inputs give
exactly those. Where the student is narrower, its channels are some of the teacher's; queries, keys and values of
attention have no channels that anything else refers to, so there the best subspace of each head is taken.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from yolokd.init.least_squares import fit_linear, select_channels

Weights = tuple[Tensor, Tensor]  # (out, in) and (out,)


def solved(x: Tensor, target: Tensor, teacher: Weights | None = None, share: Tensor | None = None) -> Weights:
    """Weights and biases that map x to target.

    Args:
        x: (..., in).
        target: (..., out).
        teacher: weights of the same meaning to solve for the difference to; None for none.
        share: (...,), weight of each point.
    """
    rest = target if teacher is None else target - F.linear(x, *teacher)
    weight, bias = fit_linear(
        x.flatten(0, -2), rest.flatten(0, -2), None if share is None else share.expand(x.shape[:-1]).flatten()
    )
    return (weight, bias) if teacher is None else (teacher[0] + weight, teacher[1] + bias)


def fit(linear: Any, x: Tensor, target: Tensor, teacher: Any = None, share: Tensor | None = None) -> Tensor:
    """Set a linear layer, and return its output.

    Args:
        linear: the student's layer.
        x, target, share: as in `solved`.
        teacher: the teacher's layer, if each of its channels is the student's of that index.
    """
    prior = None if teacher is None else (teacher.weight, teacher.bias)
    linear.weight[:], linear.bias[:] = solved(x, target, prior, share)
    out: Tensor = linear(x)
    return out


def fit_norm(norm: Any, x: Tensor, target: Tensor) -> Tensor:
    """Set a layer norm's scale and shift, channel by channel, and return its output."""
    z, wanted = (t.flatten(0, -2) for t in (F.layer_norm(x, norm.normalized_shape, eps=norm.eps), target))
    mean, aim = z.mean(0), wanted.mean(0)
    norm.weight[:] = ((z - mean) * (wanted - aim)).mean(0) / (z - mean).square().mean(0).clamp_min(1e-12)
    norm.bias[:] = aim - norm.weight * mean
    out: Tensor = norm(x)
    return out


def fit_attention(student: Any, teacher: Any, mine: Weights, theirs: Weights, target: Tensor, kept: Tensor) -> Tensor:
    """Set a multi-head self-attention, and return its output.

    Args:
        student, teacher: nn.MultiheadAttention with the same number of heads.
        mine, theirs: what arrives at queries and keys, and at values: (B, T, C) each.
        target: (B, T, C), the output that the student should have.
        kept: (C,), the teacher's channel of each of the student's.
    """
    (pointers, values), (teacher_pointers, teacher_values) = mine, theirs
    width, heads = student.embed_dim, student.num_heads
    matrices = zip(teacher.in_proj_weight.chunk(3), teacher.in_proj_bias.chunk(3), strict=True)
    weights = list(matrices)
    inputs = (teacher_pointers, teacher_pointers, teacher_values)
    wanted = [F.linear(x, *w) for x, w in zip(inputs, weights, strict=True)]
    equal = width == teacher.embed_dim
    if not equal:
        q, k, v = (split(x, heads) for x in wanted)
        out = teacher.out_proj.weight[kept].unflatten(1, (heads, -1))
        wanted = [*key_space(q, k, width // heads), value_space(v, out, width // heads)]
    parts = []
    for i, (x, y) in enumerate(zip((pointers, pointers, values), wanted, strict=True)):
        rows = slice(i * width, (i + 1) * width)
        found = solved(x, y, weights[i] if equal else None)
        student.in_proj_weight[rows], student.in_proj_bias[rows] = found
        parts.append(split(F.linear(x, *found), heads))
    q, k, v = parts
    gathered = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return fit(student.out_proj, gathered, target, teacher.out_proj if equal else None)


def split(x: Tensor, heads: int) -> Tensor:
    """(B, T, C) -> (B, heads, T, C / heads)."""
    parts: Tensor = x.unflatten(-1, (heads, -1))
    return parts.transpose(1, 2)


def key_space(q: Tensor, k: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Queries and keys of fewer channels whose products are nearest to those given, (B, heads, T, E) -> (B, T, C).

    What is added to all keys leaves attention as it is, so keys count around their mean. Products are divided by the
    root of the size, which is smaller then.
    """
    centred = k - k.mean((0, 2), keepdim=True)
    (root, inverse), (key_root, key_inverse) = (roots(moments(x)) for x in (q, centred))
    left, strength, right = torch.linalg.svd(root @ key_root)
    scale = (size / q.shape[-1]) ** 0.25 * strength[:, None, :size].sqrt()
    queries, keys = inverse @ left[..., :size] * scale, key_inverse @ right.mT[..., :size] * scale
    return joined(q @ queries.to(q)), joined(centred @ keys.to(k))


def value_space(v: Tensor, out: Tensor, size: int) -> Tensor:
    """Values of fewer channels that keep most of what they add to the output, (B, heads, T, E) -> (B, T, C).

    Args:
        v: the values.
        out: (C, heads, E), the output's weights.
        size: channels of each head.
    """
    weights = out.transpose(0, 1).cpu().double()  # (heads, C, E)
    spread = moments(v - v.mean((0, 2), keepdim=True))
    directions = torch.linalg.eigh(weights @ spread @ weights.mT).eigenvectors[..., -size:]
    return joined(v @ (weights.mT @ directions).to(v))


def moments(x: Tensor) -> Tensor:
    """(B, heads, T, E) -> (heads, E, E), mean outer products."""
    tokens = x.transpose(0, 1).flatten(1, 2).cpu().double()
    return tokens.mT @ tokens / tokens.shape[1]


def roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The root of positive matrices, and its inverse."""
    values, vectors = torch.linalg.eigh(matrix)
    size = values.clamp_min(1e-9 * float(values.max()) + 1e-30).sqrt()
    return vectors * size[:, None] @ vectors.mT, vectors / size[:, None] @ vectors.mT


def joined(x: Tensor) -> Tensor:
    """(B, heads, T, E) -> (B, T, heads E)."""
    return x.transpose(1, 2).flatten(2)


def fit_layers(
    student: Any, teacher: Any, act: Any, x: Tensor, teacher_x: Tensor, target: Tensor, equal: bool,
    share: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Set linear layers that follow each other, and return the output of the last.

    Args:
        student, teacher: lists of as many linear layers.
        act: the activation between them.
        x, teacher_x: (..., C), what arrives at the first ones.
        target: (..., D), the output that the student should have.
        equal: whether the student's channels, in x and target, are the teacher's.
        share: (...,), weight of each point for the last layer.
    """
    for i, (mine, theirs) in enumerate(zip(student[:-1], teacher[:-1], strict=True)):
        out = theirs(teacher_x)
        teacher_x = act(out)
        if mine.out_features < theirs.out_features:
            kept = strongest(teacher_x, teacher[i + 1].weight, mine.out_features)
            x, equal = act(fit(mine, x, out[..., kept])), False
        else:
            x = act(fit(mine, x, out, theirs if equal else None))
    return fit(student[-1], x, target, teacher[-1] if equal else None, share)


def strongest(x: Tensor, following: Tensor, count: int) -> Tensor:
    """The channels of x, (..., C), that the following weights, (D, C), would miss most."""
    tokens = x.flatten(0, -2)
    spread = torch.cov(tokens.T, correction=0)
    return select_channels(spread, following.T @ following, count).to(x.device)


@torch.no_grad()
def fit_encoder(student: Any, teacher: Any, x: Tensor, teacher_x: Tensor, kept: Tensor) -> None:
    """Set an AIFI layer.

    Args:
        student, teacher: the layers.
        x, teacher_x: (B, C, H, W), what arrives at them.
        kept: (C,), the teacher's channel of each of the student's.
    """
    mine, theirs = (t.flatten(2).mT for t in (x, teacher_x))
    placed, pointers = with_positions(student, x), with_positions(teacher, teacher_x)
    summed = theirs + teacher.ma(pointers, pointers, theirs, need_weights=False)[0]
    normed = teacher.norm1(summed)
    after = normed + teacher.fc2(teacher.act(teacher.fc1(normed)))
    attended = fit_attention(student.ma, teacher.ma, (placed, mine), (pointers, theirs), summed[..., kept] - mine, kept)
    here = fit_norm(student.norm1, mine + attended, normed[..., kept])
    equal = mine.shape[-1] == theirs.shape[-1]
    out = fit_layers(
        [student.fc1, student.fc2], [teacher.fc1, teacher.fc2], student.act, here, normed, after[..., kept] - here,
        equal,
    )  # fmt: skip
    fit_norm(student.norm2, here + out, teacher.norm2(after)[..., kept])


def with_positions(layer: Any, x: Tensor) -> Tensor:
    """What arrives at the queries and keys of an AIFI layer: the cells of x with their positions, (B, H W, C)."""
    found: list[Tensor] = []
    hook = layer.ma.register_forward_pre_hook(lambda module, args: found.append(args[0]))
    layer.forward(x)  # without the hooks of the layer itself, one of which may call this
    hook.remove()
    return found[0]
