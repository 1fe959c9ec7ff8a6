"""Embedded pairs: two results of different order from the same slopes, whose difference estimates the error of a step.

A step of size h from y, with stages at t + c_i h and slopes k_i, of y' = L y + N(t, y), k = N, z = L h:

    stage i      Y_i = e^{c_i z} y + h Σ_{j<i} a_ij(z) k_j
    result       e^z y + h Σ_i b_i(z) k_i                        of order p, the start of the next step
    its error    h Σ_i (b_i − b̂_i)(z) k_i                        with the result of order p − 1; ∝ h^p
    in between   e^{θz} y + h Σ_i β_i(θ, z) k_i, 0 ≤ θ ≤ 1        dense output

| pair | orders | stages | evaluations a step | dense output | L |
|---|---|---|---|---|---|
| DORMAND_PRINCE (Dormand & Prince 1980) | 5(4) | 7 | 6, the last slope is the next step's first | order 4 | 0 |
| TSIT5 (Tsitouras 2011) | 5(4) | 7 | 6, for the same reason | order 4 | 0 |
| EXPONENTIAL (Lu et al. 2022, DPM-Solver-12/23) | 3(2) | 3 | 3 | order 2 | any |

With φ_0 = e^z and φ_{k+1}(z) = (φ_k(z) − 1/k!)/z, the exponential pair has c = 0, ⅓, ⅔ and interpolates N linearly:
a_21 = c_2 φ_1(c_2 z); a_32 = (c_3²/c_2) φ_2(c_3 z), a_31 = c_3 φ_1(c_3 z) − a_32; b_3 = φ_2(z)/c_3, b_2 = 0,
b_1 = φ_1 − b_3, which is of order 3 because c_3 = ⅔; b̂_2 = φ_2/c_2, b̂_1 = φ_1 − b̂_2. At z = 0 it is Heun's method of
order 3. Three stages allow no dense output of order 3.

Dense output of the Dormand–Prince pair: Shampine 1986, as in Hairer, Nørsett & Wanner, Solving ODEs I, II.6.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "DORMAND_PRINCE",
    "EXPONENTIAL",
    "TSIT5",
    "EmbeddedTableau",
    "Exponential",
    "Pair",
    "PairWeights",
    "phi",
]

Weight = float | Tensor
Row = Sequence[Weight]


class PairWeights(NamedTuple):
    """The coefficients of one step, plain numbers or one value a row.

    Attributes:
        decay: e^{c_i z} of each stage, and e^z as the last entry; None for z = 0.
        a: row i contains a_i0 … a_i,i−1; the first row is empty.
        b: the weights of the result.
        error: b − b̂.
    """

    decay: Row | None
    a: Sequence[Row]
    b: Row
    error: Row


class Pair(ABC):
    """An embedded pair.

    Attributes:
        order: the order p of the result; the error estimate is ∝ h^p.
        c: the nodes of the stages, relative to the step.
        first_same_as_last: whether the last stage is the result, so that its slope is the first of the next step.
        exponential: whether L ≠ 0 is allowed.
    """

    order: int
    c: tuple[float, ...]
    first_same_as_last: bool
    exponential: bool

    @abstractmethod
    def weights(self, z: Float[Tensor, "rows"] | None) -> PairWeights:
        """The coefficients at z = L h, one value a row; None for L = 0."""

    @abstractmethod
    def dense(self, theta: Float[Tensor, "points"], z: Float[Tensor, "points"] | None) -> tuple[Tensor | None, Row]:
        """e^{θz} (None where L = 0) and β_i(θ, z)."""


@dataclass(frozen=True)
class EmbeddedTableau(Pair):
    """An explicit Runge–Kutta pair.

    Args:
        order: p.
        a: row i contains a_i0 … a_i,i−1; the first row is empty.
        b: weights of the result.
        b_hat: weights of the result of order p − 1.
        interpolant: row i contains the coefficients of θ, θ², … in β_i(θ).
    """

    order: int
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    b_hat: tuple[float, ...]
    interpolant: tuple[tuple[float, ...], ...]

    @property
    def c(self) -> tuple[float, ...]:  # type: ignore[override]
        """The nodes c_i = Σ_j a_ij."""
        return tuple(math.fsum(row) for row in self.a)

    @property
    def first_same_as_last(self) -> bool:  # type: ignore[override]
        """Whether the last stage is the result."""
        return (*self.a[-1], 0.0) == self.b

    @property
    def exponential(self) -> bool:  # type: ignore[override]
        """False."""
        return False

    def weights(self, z: Float[Tensor, "rows"] | None) -> PairWeights:
        """The tableau's numbers."""
        return PairWeights(None, self.a, self.b, tuple(b - h for b, h in zip(self.b, self.b_hat, strict=True)))

    def dense(self, theta: Float[Tensor, "points"], z: Float[Tensor, "points"] | None) -> tuple[Tensor | None, Row]:
        """β_i(θ), by Horner's rule."""
        rows: list[Tensor] = []
        for coefficients in self.interpolant:
            value = torch.zeros_like(theta)
            for coefficient in reversed(coefficients):
                value = (value + coefficient) * theta
            rows.append(value)
        return None, rows


@dataclass(frozen=True)
class Exponential(Pair):
    """The exponential pair 3(2) with nodes 0, ⅓, ⅔, for any L."""

    order: int = 3
    c: tuple[float, ...] = (0.0, 1 / 3, 2 / 3)
    first_same_as_last: bool = False
    exponential: bool = True

    def weights(self, z: Float[Tensor, "rows"] | None) -> PairWeights:
        """The φ-functions' values at c_i z; numbers at z = 0."""
        _, c_2, c_3 = self.c
        one, two = _phi(z, 1), _phi(z, 2)
        a_32 = _phi(_scaled(z, c_3), 2) * (c_3**2 / c_2)
        a = ((), (_phi(_scaled(z, c_2), 1) * c_2,), (_phi(_scaled(z, c_3), 1) * c_3 - a_32, a_32))
        b_3, hat_2 = two / c_3, two / c_2
        decay = None if z is None else [*(torch.exp(z * c) for c in self.c), torch.exp(z)]
        return PairWeights(decay, a, (one - b_3, 0.0, b_3), (hat_2 - b_3, -hat_2, b_3))

    def dense(self, theta: Float[Tensor, "points"], z: Float[Tensor, "points"] | None) -> tuple[Tensor | None, Row]:
        """β_3 = θ² φ_2(θz)/c_3, β_2 = 0, β_1 = θ φ_1(θz) − β_3: b with the step's end at θ."""
        inside = None if z is None else z * theta
        last = theta**2 * _phi(inside, 2) / self.c[2]
        return None if inside is None else torch.exp(inside), (theta * _phi(inside, 1) - last, 0.0, last)


def _scaled(z: Tensor | None, by: float) -> Tensor | None:
    return None if z is None else z * by


def _phi(z: Tensor | None, k: int) -> Weight:
    """φ_k(z); 1/k! for None, which means z = 0."""
    return 1 / math.factorial(k) if z is None else phi(z, k)


def phi(z: Float[Tensor, "*shape"], k: int) -> Float[Tensor, "*shape"]:
    """φ_k(z) = Σ_j z^j/(j+k)!, for k ≥ 1: by the series where |z| < 1, by φ_k = (φ_{k−1} − 1/(k−1)!)/z elsewhere.

    >>> phi(torch.tensor([0.0, 1.0], dtype=torch.float64), 1)
    tensor([1.0000, 1.7183], dtype=torch.float64)
    """
    small = z.clamp(-1, 1)
    series = torch.zeros_like(z)
    for j in range(17, -1, -1):
        series = series * small + 1 / math.factorial(j + k)
    large = torch.where(z.abs() < 1, torch.ones_like(z), z)
    value = torch.expm1(large) / large
    for i in range(1, k):
        value = (value - 1 / math.factorial(i)) / large
    return torch.where(z.abs() < 1, series, value)


_DORMAND_PRINCE_B = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0)
DORMAND_PRINCE = EmbeddedTableau(
    order=5,
    a=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        _DORMAND_PRINCE_B[:-1],
    ),
    b=_DORMAND_PRINCE_B,
    b_hat=(5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40),
    interpolant=(
        (1.0, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
        (),
        (0.0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799),
        (0.0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
        (0.0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632),
        (0.0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
        (0.0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
    ),
)
"""Dormand & Prince's pair 5(4)."""

_TSIT5_B = (
    0.09646076681806523,
    0.01,
    0.4798896504144996,
    1.379008574103742,
    -3.290069515436081,
    2.324710524099774,
    0.0,
)
TSIT5 = EmbeddedTableau(
    order=5,
    a=(
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
        _TSIT5_B[:-1],
    ),
    b=_TSIT5_B,
    b_hat=(
        0.09646076681806523 - 0.00178001105222577714,
        0.01 - 0.0008164344596567469,
        0.4798896504144996 + 0.007880878010261995,
        1.379008574103742 - 0.1447110071732629,
        -3.290069515436081 + 0.5823571654525552,
        2.324710524099774 - 0.45808210592918697,
        1 / 66,
    ),
    interpolant=(
        (1.0, -2.763706197274826, 2.9132554618219126, -1.0530884977290216),
        (0.0, 0.1317, -0.2234, 0.1017),
        (0.0, 3.930296236894751, -5.941033872131505, 2.490627285651253),
        (0.0, -12.411077166933676, 30.338188630282318, -16.548102889244902),
        (0.0, 37.50931341651104, -88.1789048947664, 47.37952196281928),
        (0.0, -27.896526289197286, 65.09189467479368, -34.87065786149661),
        (0.0, 1.5, -4.0, 2.5),
    ),
)
"""Tsitouras's pair 5(4)."""

EXPONENTIAL = Exponential()
"""The exponential pair 3(2) of DPM-Solver."""
