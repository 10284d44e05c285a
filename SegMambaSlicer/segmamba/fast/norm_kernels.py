"""Instance norm with what follows it, in Triton: sums, their finish, and one pass that applies everything."""

from __future__ import annotations

import triton  # type: ignore[import-untyped, import-not-found]
import triton.language as tl  # type: ignore[import-untyped, import-not-found]

# Sizes and distances in voxels: a kernel that was compiled for one layer serves all.
SIZES = (
    "voxels",
    "turns",
    "depth",
    "height",
    "width",
    "border",
    "parts",
    "count",
    "x_batch",
    "x_plane",
    "x_row",
    "r_batch",
    "r_plane",
    "r_row",
    "t_batch",
    "t_plane",
    "t_row",
    "y_batch",
    "y_plane",
    "y_row",
)


@triton.jit(do_not_specialize=SIZES)
def sums_kernel(  # type: ignore[no-untyped-def]
    x, sums, voxels, turns, C, XS, BC: tl.constexpr, BM: tl.constexpr
):
    """Sums and sums of squares of the channels of x (B, voxels, XS): sums (B, programs, 2, C)."""
    block = tl.program_id(0)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    batch = tl.program_id(2).to(tl.int64)
    x += batch * voxels * XS
    total = tl.zeros((BM, BC), dtype=tl.float32)
    squares = tl.zeros((BM, BC), dtype=tl.float32)
    for turn in range(turns):
        m = (block * turns + turn) * BM + tl.arange(0, BM)
        mask = (m < voxels)[:, None] & (c < C)[None, :]
        values = tl.load(x + m[:, None] * XS + c[None, :], mask=mask, other=0.0).to(tl.float32)
        total += values
        squares += values * values
    place = sums + ((batch * tl.num_programs(0) + block) * 2) * C + c
    tl.store(place, tl.sum(total, axis=0), mask=c < C)
    tl.store(place + C, tl.sum(squares, axis=0), mask=c < C)


@triton.jit(do_not_specialize=SIZES)
def finish_kernel(  # type: ignore[no-untyped-def]
    sums, weight, bias, factors, parts, count, eps, C, BC: tl.constexpr, BP: tl.constexpr
):
    """Add the parts of sums (B, parts, 2, C) and write factors (B, 2, C): the norm is x factors[0] + factors[1]."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    batch = tl.program_id(1)
    p = tl.arange(0, BP)
    total = tl.zeros((BP, BC), dtype=tl.float32)
    squares = tl.zeros((BP, BC), dtype=tl.float32)
    for first in range(0, parts, BP):
        place = sums + ((batch * parts + first + p)[:, None] * 2) * C + c[None, :]
        mask = (first + p < parts)[:, None] & (c < C)[None, :]
        total += tl.load(place, mask=mask, other=0.0)
        squares += tl.load(place + C, mask=mask, other=0.0)
    mean = tl.sum(total, axis=0) / count
    variance = tl.maximum(tl.sum(squares, axis=0) / count - mean * mean, 0.0)
    scale = 1 / tl.sqrt(variance + eps)
    shift = -mean * scale
    if weight is not None:
        gain = tl.load(weight + c, mask=c < C, other=0.0)
        scale *= gain
        shift = shift * gain + tl.load(bias + c, mask=c < C, other=0.0)
    tl.store(factors + batch * 2 * C + c, scale, mask=c < C)
    tl.store(factors + batch * 2 * C + C + c, shift, mask=c < C)


@triton.jit(do_not_specialize=SIZES)
def apply_kernel(  # type: ignore[no-untyped-def]
    x, x_factors, r, r_factors, t, y,
    depth, height, width, border,
    x_batch, x_plane, x_row, r_batch, r_plane, r_row, t_batch, t_plane, t_row, y_batch, y_plane, y_row,
    C, XS, RS, TS, YS,
    X_SCALED: tl.constexpr, R_SCALED: tl.constexpr, HAS_R: tl.constexpr, HAS_T: tl.constexpr, R_SHARED: tl.constexpr,
    SLOPE_X: tl.constexpr, SLOPE_R: tl.constexpr, SLOPE: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Compute y = act(act_x(norm(x)) + act_r(norm(r)) + t) on the voxels of a map and zero on its border.

    One program writes BC channels of BM voxels of a plane of y, which starts at the border. act is a leaky ReLU; a
    slope of 1 is none. Factors (B, 2, C) are those of `finish_kernel`. With R_SHARED, r has one channel, which all
    channels of y take.
    """
    parts = tl.cdiv(C, BC)
    plane = tl.program_id(1) - border
    batch = tl.program_id(2).to(tl.int64)
    c = tl.program_id(0) % parts * BC + tl.arange(0, BC)
    voxel = tl.program_id(0) // parts * BM + tl.arange(0, BM)
    across = width + 2 * border
    line = voxel // across - border
    column = voxel % across - border
    lines = tl.where((plane >= 0) & (plane < depth), height, 0)
    inside = (line >= 0) & (line < lines) & (column >= 0) & (column < width)
    channels = (c < C)[None, :]
    mask = inside[:, None] & channels
    place = ((plane * x_plane + line * x_row + column) * XS)[:, None] + c[None, :]
    values = tl.load(x + batch * x_batch * XS + place, mask=mask, other=0.0).to(tl.float32)
    if X_SCALED:
        factors = x_factors + batch * 2 * C + c
        scale, shift = tl.load(factors, mask=c < C, other=0.0), tl.load(factors + C, mask=c < C, other=0.0)
        values = values * scale[None, :] + shift[None, :]
    if SLOPE_X != 1.0:
        values = tl.where(values >= 0, values, values * SLOPE_X)
    if HAS_R:
        voxels = r + batch * r_batch * RS + ((plane * r_plane + line * r_row + column) * RS)[:, None]
        if R_SHARED:
            other = tl.load(voxels, mask=inside[:, None], other=0.0).to(tl.float32)
        else:
            other = tl.load(voxels + c[None, :], mask=mask, other=0.0).to(tl.float32)
        if R_SCALED:
            factors = r_factors + batch * 2 * C + c
            scale, shift = tl.load(factors, mask=c < C, other=0.0), tl.load(factors + C, mask=c < C, other=0.0)
            other = other * scale[None, :] + shift[None, :]
        if SLOPE_R != 1.0:
            other = tl.where(other >= 0, other, other * SLOPE_R)
        values += other
    if HAS_T:
        place = ((plane * t_plane + line * t_row + column) * TS)[:, None] + c[None, :]
        values += tl.load(t + batch * t_batch * TS + place, mask=mask, other=0.0).to(tl.float32)
    if SLOPE != 1.0:
        values = tl.where(values >= 0, values, values * SLOPE)
    values = tl.where(inside[:, None], values, 0.0)
    place = ((plane * y_plane + line * y_row + column) * YS)[:, None] + c[None, :]
    written = (voxel < across * (height + 2 * border))[:, None] & channels
    tl.store(y + batch * y_batch * YS + place, values.to(y.dtype.element_ty), mask=written)
