"""Noise from the increments of one Brownian path a sample: smaller steps follow the same path.

W(u), 0 ≤ u ≤ 1, is a Brownian motion for every entry of every sample, a function of the sample's seed, the entry's
position and u alone. The path is not stored: any W(u) is computed from a few hashed bits, by three laws.

- Midpoints (Lévy 1948): W(m) = ½(W(a) + W(b)) + ½√(b − a) z for m = ½(a + b), with a separate normal z for every
  interval. This gives W at the multiples of 1/8; each z is made of 16 bits of a hash of (seed, position, interval).
- Between two of those, W(u) = (1 − f) W(a) + f W(b) + √(b − a) β(f), where f = (u − a)/(b − a) and β is a Brownian
  bridge. Another 16 bits select one of 65,536 fixed bridges: the values of all of them at f are a small table, and W(u)
  needs one look-up in it, for steps of any size.
- A bridge consists of 64 straight lines, plus a bridge of 1/8 the height on each of them (self-similarity), twice;
  within 2⁻¹⁵ of the clock it is the half circle 2√(f(1 − f)) β(½), whose law is exact at any single time.

The clock is u(σ) = σ^⅓ / (1 + σ^⅓), increasing from u(0) = 0 to u(∞) = 1, with du/d ln σ = ⅓ u(1 − u).

Sources: paths as functions of a seed, Gaines & Lyons 1997 and Li et al. 2020 (arXiv 2001.01328, section 4); the hash,
SplitMix64, Steele, Lea & Flood 2014.
"""

import math
from functools import cache

import torch
from jaxtyping import Float, Float32, Float64, Int32, Int64
from torch import Tensor

from openedm.ground import checks
from openedm.sampling.noise import SeededNoise, Seeds

__all__ = ["BrownianNoise", "clock"]

NUM_LEAVES = 8  # intervals between the points of the tree
NUM_PIECES = 64  # lines of a bridge
NUM_BRIDGES = 2**14  # bridges in the library; with two signs each, 2¹⁶
WEYL = 0x9E3779B97F4A7C15 - 2**64  # 2⁶⁴ / golden ratio, the step of SplitMix64, as a signed number


def clock(sigma: float) -> float:
    """u(σ) = σ^⅓ / (1 + σ^⅓), the time of the Brownian path: 0.11 at σ = 0.002, 0.5 at 1, 0.81 at 80.

    Args:
        sigma: the noise level, ≥ 0, in data units.

    Raises:
        ValueError: a level is negative or not finite.
    """
    checks.finite("sigma", sigma)
    checks.at_least("sigma", sigma, 0)
    root = math.cbrt(sigma)
    return root / (1 + root)


class BrownianNoise:
    """One Brownian path for each sample: row i is a function of `seeds[i]` alone.

    A solver of a stochastic differential equation calls `step_noise(σ_i, σ_{i+1}, …)` instead of drawing unit noise:
    (W(u_{i+1}) − W(u_i)) / √|u_{i+1} − u_i| with u = u(σ). The noise of steps that do not overlap is independent, and
    all grids follow one path. A step's noise ∫ g dW, with g known, becomes a multiple of this one number with the exact
    variance; it differs from the integral along the path by √(∫ (g − ḡ)² du) = O(|Δu|^{3/2}), independently from step
    to step, hence by O(Δu) in total. As the steps become smaller, a solution converges to that of its path, at the
    strong order of the solver up to 1 (Kloeden & Platen 1992, section 10.2).

    W deviates from a Brownian motion as follows: the normal numbers of the tree are 65,536 equally likely ones with
    variance 1 and no larger than 4.4. Covariances of W at multiples of 2⁻⁹ are exact. The bridges are fixed, as
    accurate as 65,536 random ones: within one eighth of the clock, variances of increments have errors of about 0.2 %
    (at most 2 %) and probabilities of about 0.002 (at most 0.006). Below 2⁻¹⁵ W is smooth. Entries, samples and eighths
    of the clock are independent.

    W is computed in float32 and depends neither on earlier calls nor on the batch.

    Args:
        seeds: one integer ≥ 0 a sample; taken mod 2³².

    Raises:
        ValueError: there are no seeds, or one is negative.

    >>> noise = BrownianNoise([7])
    >>> whole, first, second = (noise.increment(a, b, (1,)) for a, b in [(0.2, 0.5), (0.2, 0.3), (0.3, 0.5)])
    >>> bool((whole - first - second).abs().max() < 1e-6)
    True
    """

    def __init__(self, seeds: Seeds) -> None:
        self._seeded_noise = SeededNoise(seeds)
        self.seeds = self._seeded_noise.seeds
        self._seeds = torch.tensor([seed % 2**32 for seed in self.seeds], dtype=torch.int64)
        self._path: _Path | None = None

    def restarted(self) -> "BrownianNoise":
        """The source as it was before the first draw."""
        return BrownianNoise(self.seeds)

    def draw(self, event_shape: tuple[int, ...]) -> Float[Tensor, "batch *event"]:
        """The next unit Gaussian noise of `SeededNoise` with these seeds, independent of the path."""
        return self._seeded_noise.draw(event_shape)

    def step_noise(
        self,
        sigma: float,
        sigma_next: float,
        event_shape: tuple[int, ...],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "batch *event"]:
        """Unit Gaussian noise for a step from σ to σ_next: (W(u(σ_next)) − W(u(σ))) / √|u(σ_next) − u(σ)|.

        The noise of overlapping steps is correlated, so that the levels must be those of the step: with churn σ_i and
        σ_{i+1}, not the raised level.

        Args:
            sigma: the level at the start of the step, ≥ 0.
            sigma_next: the level at its end, ≥ 0, another level than `sigma`.
            event_shape: the shape of one sample.
            device: the device of the noise.
            dtype: the dtype of the noise.

        Raises:
            ValueError: a level is negative or not finite, or the two are equal.
        """
        start, end = clock(sigma), clock(sigma_next)
        if start == end:
            raise ValueError(f"sigma and sigma_next must differ, got {sigma!r} and {sigma_next!r}")
        return self._difference(start, end, event_shape, device).mul_(abs(end - start) ** -0.5).to(dtype)

    def increment(
        self,
        start: float,
        end: float,
        event_shape: tuple[int, ...],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "batch *event"]:
        """W(end) − W(start), of variance |end − start|; increments add up, to rounding.

        Args:
            start: a time of the clock, in [0, 1].
            end: another time, before or after it.
            event_shape: the shape of one sample.
            device: the device of the increment.
            dtype: its dtype.

        Raises:
            ValueError: a time is outside [0, 1].
        """
        checks.between("start", start, 0, 1)
        checks.between("end", end, 0, 1)
        return self._difference(start, end, event_shape, device).to(dtype)

    def _difference(
        self, start: float, end: float, event_shape: tuple[int, ...], device: torch.device | str
    ) -> Float32[Tensor, "batch *event"]:
        size, device = math.prod(event_shape), torch.device(device)
        if self._path is None or (self._path.size, self._path.device) != (size, device):
            self._path = _Path(self._seeds, size, device)
        before = self._path.at(start)
        return (self._path.at(end) - before).view(len(self._seeds), *event_shape)


class _Path:
    """W(u) of all entries of all samples. Caches values that neighbouring times share: 7 values of W, one bridge."""

    @torch.inference_mode(False)
    def __init__(self, seeds: Int64[Tensor, " batch"], size: int, device: torch.device) -> None:
        self.size, self.device = size, device
        positions = torch.arange(-(-size // 4), device=device) * WEYL  # 64 bits serve four entries
        self._keys = _hash_copy(_hash_copy((seeds.to(device) + 1) * WEYL)[:, None] + positions)
        self._salts = _hash_copy(torch.arange(1, 2 * NUM_LEAVES + 1) * WEYL).tolist()
        self._hash, self._workspace = torch.empty_like(self._keys), torch.empty_like(self._keys)
        self._normal = torch.empty(len(seeds), size, dtype=torch.int32, device=device)
        self._bridge, self._leaf = torch.empty_like(self._normal), -1
        self._tree_values = {0: torch.zeros(self._normal.numel(), dtype=torch.float32, device=device)}  # W(k/8) by k
        self._latest: tuple[float, Tensor] | None = None

    def at(self, time: float) -> Float32[Tensor, " entry"]:
        """W(time), which must not be modified. The latest value is cached, because most steps start at it."""
        if self._latest is None or self._latest[0] != time:
            self._latest = time, self._compute(time)
        return self._latest[1]

    def _compute(self, time: float) -> Float32[Tensor, " entry"]:
        """(1 − f) W(a) + f W(b) + √(b − a) β(f)."""
        leaf, fraction = _locate(time, NUM_LEAVES)
        left, right = self._point(leaf), self._point(leaf + 1)
        if leaf != self._leaf:
            self._leaf = leaf
            self._tree_values = {k: value for k, value in self._tree_values.items() if k in _needed_points(leaf)}
            self._select_bits(NUM_LEAVES + leaf, self._bridge)
        value = _bridges(fraction, NUM_LEAVES**-0.5, self.device).index_select(0, self._bridge.view(-1))
        return value.add_(left, alpha=1 - fraction).add_(right, alpha=fraction)

    def _point(self, k: int) -> Float32[Tensor, " entry"]:
        """W(k/8) = ½(W(a) + W(b)) + ½√(b − a) z; the last, W(1), is a normal number."""
        if k not in self._tree_values:
            self._select_bits(k - 1, self._normal)
            value = _normals(self.device).index_select(0, self._normal.view(-1))
            if k < NUM_LEAVES:
                half = k & -k
                value.mul_(math.sqrt(2 * half / NUM_LEAVES) / 2)
                value.add_(self._point(k - half), alpha=0.5).add_(self._point(k + half), alpha=0.5)
            self._tree_values[k] = value
        return self._tree_values[k]

    def _select_bits(self, node: int, out: Int32[Tensor, "batch size"]) -> None:
        """16 bits for every entry of every sample, which depend on the node."""
        torch.add(self._keys, self._salts[node], out=self._hash)
        _hash_in_place(self._hash, self._workspace)
        out.copy_(self._hash.view(torch.int16)[:, : self.size]).bitwise_and_(0xFFFF)


def _needed_points(leaf: int) -> set[int]:
    """The ends of a leaf and of all intervals of the tree that contain it."""
    widths = [2**level for level in range(NUM_LEAVES.bit_length())]
    return {leaf // width * width + side for width in widths for side in (0, width)}


def _locate(time: float, pieces: int) -> tuple[int, float]:
    """The number of the piece that contains a time, of equal pieces of [0, 1], and the relative position in it."""
    k = min(int(time * pieces), pieces - 1)
    return k, time * pieces - k


def _bridges(fraction: float, height: float, device: torch.device) -> Float32[Tensor, " bridge"]:
    """height β(fraction) of all 65,536 bridges: ±lines ± lines of the pieces ± half circles, by independent signs."""
    library = _library(device)
    i, within = _locate(fraction, NUM_PIECES)
    j, offset = _locate(within, NUM_PIECES)
    coarse = torch.lerp(library[i], library[i + 1], within).mul_(height)
    fine = torch.lerp(library[j], library[j + 1], offset).mul_(height / NUM_PIECES**0.5)
    finest = library[NUM_PIECES // 2] * (height / NUM_PIECES * 2 * math.sqrt(offset * (1 - offset)))
    fine, finest = _reorder(fine, i), _reorder(finest, i * (NUM_PIECES + 1) + j + 1)
    table = torch.empty(4, NUM_BRIDGES, dtype=torch.float32, device=device)
    torch.add(coarse, fine, out=table[0])
    torch.sub(coarse, fine, out=table[1])
    torch.neg(table[:2], out=table[2:])
    table[0::2].add_(finest)
    table[1::2].sub_(finest)
    return table.view(-1)


def _reorder(values: Tensor, piece: int) -> Tensor:
    """The same values in an order that differs between pieces, so that each piece has a different bridge."""
    return values.roll((piece + 1) * 12345 % NUM_BRIDGES)


@cache
@torch.inference_mode(False)
def _library(device: torch.device) -> Float32[Tensor, "time row"]:
    """16,384 Brownian bridges at the multiples of 1/64, with exactly the covariance s(1 − t), s ≤ t.

    Midpoints as in the tree, with normal numbers in random orders that are made exactly uncorrelated: Z ← (ZZᵀ/n)^{−½}
    Z.
    """
    keys = torch.arange(1, (NUM_PIECES - 1) * NUM_BRIDGES + 1) * WEYL
    normals = _quantiles(NUM_BRIDGES)[_hash_copy(keys).view(NUM_PIECES - 1, NUM_BRIDGES).argsort()]
    eigenvalues, vectors = torch.linalg.eigh(normals @ normals.T / NUM_BRIDGES)
    numbers = iter((vectors * eigenvalues.rsqrt()) @ vectors.T @ normals)
    library = torch.zeros(NUM_PIECES + 1, NUM_BRIDGES, dtype=torch.float64)
    half = NUM_PIECES // 2
    while half > 0:
        for k in range(half, NUM_PIECES, 2 * half):
            middle = (library[k - half] + library[k + half]) / 2
            library[k] = middle + math.sqrt(2 * half / NUM_PIECES) / 2 * next(numbers)
        half //= 2
    return library.to(device, torch.float32)


@cache
@torch.inference_mode(False)
def _normals(device: torch.device) -> Float32[Tensor, " quantile"]:
    return _quantiles(2**16).to(device, torch.float32)


def _quantiles(count: int) -> Float64[Tensor, " quantile"]:
    """The means of the normal distribution over `count` equally likely intervals, scaled to variance 1."""
    edges = torch.special.ndtri(torch.linspace(0, 1, count + 1, dtype=torch.float64))
    density = torch.exp(-(edges**2) / 2)
    means = density[:-1] - density[1:]
    return means / means.square().mean().sqrt()


def _hash_copy(x: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    x = x.clone()
    _hash_in_place(x, torch.empty_like(x))
    return x


def _hash_in_place(x: Int64[Tensor, "*shape"], workspace: Int64[Tensor, "*shape"]) -> None:
    """SplitMix64's finaliser, in place: a bijection of 64 bits; every bit of the result depends on every bit of x."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64), (31, 1)):
        torch.bitwise_right_shift(x, shift, out=workspace)
        x.bitwise_xor_(workspace.bitwise_and_(2 ** (64 - shift) - 1))
        if factor != 1:
            x.mul_(factor)
