"""All conditionals of parameters and data at once: p(θ|x), p(x|θ), p(θ_1|θ_2, x_3), from one denoiser.

Variables are θ_1 … θ_d, x_1 … x_n in this order. The denoiser is trained with random sets of known variables (`masks`);
a conditional fixes such a set: a posterior whose parameters are the latent variables, whose data the known ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from openedm import objective
from openedm.denoiser import Denoiser
from openedm.ground.choices import from_config, to_config
from openedm.ground.devices import device_of
from openedm.inference import storage, trained
from openedm.inference.arrays import Values
from openedm.inference.bijections import Bijection
from openedm.inference.composite import as_prior
from openedm.inference.maps import Coordinates, DataMap
from openedm.inference.masks import JointModel, Latent, MaskedData, Masks
from openedm.inference.precision import as_precise_as_needed
from openedm.inference.prepare import check_simulations, constant_columns
from openedm.inference.priors import Prior
from openedm.inference.trained import DenoiserPosterior, Parts
from openedm.likelihood import Likelihood
from openedm.networks import JointTransformer, Network
from openedm.objective import Objective
from openedm.sampling import Auto, SamplerChoice
from openedm.training import HalfLife, Model, Observer, Options, Trainer, list_checkpoints

__all__ = ["KIND", "OBJECTIVE", "Conditional", "Joint", "fit_joint", "load", "save"]

KIND = "joint"
"""The kind of folders that hold a joint distribution."""

OBJECTIVE = objective.EDM(noise=objective.LogNormal(-0.6, 1.6))
"""σ from 0.02 to 15 standard deviations: from what known data leave of a latent's width to where it is all noise."""


@dataclass
class KnownVariables(DataMap):
    """The values of known variables, x_shape, as the condition of `Latent`: one unbounded coordinate each."""

    bijection: Bijection = field(kw_only=True)
    names: tuple[str, ...] = field(kw_only=True)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the condition."""
        return (len(self.names),)

    def forward(self, x: Float[Tensor, "rows *event"]) -> Float[Tensor, "rows known"]:
        """The coordinates, float32.

        Raises:
            ValueError: a value lies outside its support.
        """
        values = x.flatten(1)
        z = self.columns.forward(self.bijection.forward(values.double())).float()
        if bool(z.isnan().any()):
            row, column = (int(i) for i in z.isnan().nonzero()[0])
            raise ValueError(
                f"x must lie in the support of what is known, got {self.names[column]} = {float(values[row, column]):g}"
            )
        return z


class Conditional(DenoiserPosterior):
    """p(wanted | known) of a joint distribution, which `Joint` makes.

    The joint denoiser is evaluated with the known variables fixed; those that are neither wanted nor known are sampled
    with the wanted ones and dropped. Here "parameters" are the wanted variables, and the observation x holds the values
    of the known ones.

    Args:
        parts: a `Latent` denoiser, and the maps of wanted and known variables.
        known: names of the known variables.
        integrated_out: names of those that are neither wanted nor known.
        options: as for `DenoiserPosterior`.

    Raises:
        ValueError: as `Posterior`. `sample` and `log_prob` raise it where a known value lies outside its support, and
            `log_prob` where a variable is integrated out.
    """

    options: ClassVar[tuple[str, ...]] = (*DenoiserPosterior.options, "known", "integrated_out")

    def __init__(self, parts: Parts, *, known: Sequence[str], integrated_out: Sequence[str], **options: Any) -> None:
        super().__init__(parts, **options)
        self.known, self.integrated_out = tuple(known), tuple(integrated_out)

    def _density(
        self, theta: Float[Tensor, "observations n dim"], x: Float[Tensor, "observations ..."]
    ) -> Float[Tensor, "observations n"]:
        if self.integrated_out:
            raise ValueError(
                f"log_prob is not known where variables are integrated out ({', '.join(self.integrated_out)}): "
                "name them as latent or observed"
            )
        return super()._density(theta, x)


class Joint:
    """The distribution of parameters and data, as a denoiser of all of its conditionals.

    Args:
        denoiser: of all variables, with condition [values, flags]: a trained `Pinned`, or an exact one.
        model: its description, with which it is saved; None for a denoiser of your own.
        coordinates: of all variables, θ first.
        dim: number of parameters.
        x_shape: shape of one observation.
        prior: of θ, or None.
        names: of all variables; None means the prior's or theta_1, …, then x_1, ….
        sampler: how samples are drawn.
        density: how log-densities are computed.

    Raises:
        ValueError: the names are not as many as variables, or not different.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        model: Model | None,
        coordinates: Coordinates,
        dim: int,
        x_shape: Sequence[int],
        *,
        prior: Prior | None = None,
        names: Sequence[str] | None = None,
        sampler: SamplerChoice = Auto(),
        density: Likelihood = Likelihood(),
    ) -> None:
        self.denoiser, self.model, self.coordinates = denoiser, model, coordinates
        self.dim, self.x_shape, self.prior = dim, tuple(x_shape), prior
        self.names = _names(dim, coordinates.bijection.dim - dim, prior, names)
        self.sampler, self.density = sampler, density

    def posterior(self) -> Conditional:
        """p(θ | x)."""
        theta, x = range(self.dim), range(self.dim, len(self.names))
        return self._conditional(theta, x, self.x_shape, self.prior)

    def likelihood(self) -> Conditional:
        """p(x | θ), over the numbers of x in a row."""
        return self._conditional(range(self.dim, len(self.names)), range(self.dim))

    def conditional(self, latent: Sequence[int | str], observed: Sequence[int | str] | None = None) -> Conditional:
        """p(latent | observed), over the variables in the order in which they are given.

        Args:
            latent: numbers or names of variables, one at least. θ_1 is 0, x_1 is `dim`.
            observed: those whose values are given, in the order of these values; () for none. None means all that are
                not latent. Those that are neither are integrated out; there is no log-density then.

        Raises:
            ValueError: no variable is latent, one is named twice, or there is no such variable.
        """
        wanted = self._indices("latent", latent)
        if observed is None:
            given = [i for i in range(len(self.names)) if i not in wanted]
        else:
            given = self._indices("observed", observed)
        if not wanted:
            raise ValueError("latent must hold at least one variable, got none")
        both = [self.names[i] for i in given if i in wanted]
        if both:
            raise ValueError(f"observed must hold no latent variable, got {', '.join(both)} in both")
        return self._conditional(wanted, given)

    def _conditional(
        self,
        wanted: Sequence[int],
        known: Sequence[int],
        x_shape: tuple[int, ...] | None = None,
        prior: Prior | None = None,
    ) -> Conditional:
        others = [i for i in range(len(self.names)) if i not in wanted and i not in known]
        known_names = tuple(self.names[i] for i in known)
        of_known = self.coordinates.part(known)
        x_shape = (len(known),) if x_shape is None else x_shape
        data = KnownVariables(
            x_shape, (), of_known.columns, precise=of_known.precise, bijection=of_known.bijection, names=known_names
        )
        denoiser = Latent(self.denoiser, [*wanted, *others], known).to(device_of(self.denoiser)).eval()
        return Conditional(
            Parts(denoiser, self.coordinates.part(wanted), data),
            known=known_names,
            integrated_out=[self.names[i] for i in others],
            prior=prior,
            names=[self.names[i] for i in wanted],
            sampler=self.sampler,
            likelihood=self.density,
        )

    def _indices(self, name: str, variables: Sequence[int | str]) -> list[int]:
        if isinstance(variables, str):
            raise ValueError(f"{name} must be a sequence of variables, got the text {variables!r}")
        known: dict[int | str, int] = {name: i for i, name in enumerate(self.names)}
        known |= {i: i for i in range(len(self.names))}
        unknown = [v for v in variables if v not in known]
        if unknown:
            raise ValueError(
                f"{name} must hold numbers from 0 to {len(self.names) - 1} or names among "
                f"{', '.join(self.names)}, got {unknown[0]!r}"
            )
        indices = [known[v] for v in variables]
        if len(set(indices)) != len(indices):
            raise ValueError(f"{name} must hold each variable once, got {list(variables)}")
        return indices

    def save(self, path: str | Path) -> None:
        """Write the distribution to a new folder.

        Raises:
            ValueError: `path` exists, the denoiser is not one that `fit_joint` trained, or the prior has no plain form.
        """
        further = {"dim": self.dim, "x_shape": list(self.x_shape), "coordinates": to_config(self.coordinates)}
        common = storage.Common(self.model, [self.denoiser], self.prior, self.names, self.sampler, self.density)
        storage.write(path, KIND, common, further, {}, {})

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> "Joint":
        """The distribution that `save` wrote. Arguments and errors as for `openedm.inference.load`."""
        return cls.from_stored(storage.read(path, KIND), device)

    @classmethod
    def from_stored(cls, stored: storage.Stored, device: torch.device | str) -> "Joint":
        """The distribution of a folder that was read. Errors as for `load`."""
        with stored.described():
            common = stored.common()
            (denoiser,) = common.members
            joint = cls(
                denoiser,
                common.model,
                from_config(Coordinates, stored.config["coordinates"]),
                int(stored.config["dim"]),
                stored.config["x_shape"],
                prior=common.prior,
                names=common.names,
                sampler=common.sampler,
                density=common.likelihood,
            )
        stored.load_weights(common, {})
        denoiser.to(device).eval()
        return joint


def fit_joint(
    theta: Values,
    x: Values,
    prior: Any = None,
    *,
    network: Network = JointTransformer(),
    masks: Masks = Masks(),
    objective: Objective = OBJECTIVE,
    options: Options | None = None,
    sampler: SamplerChoice = Auto(),
    density: Likelihood = Likelihood(),
    names: Sequence[str] | None = None,
    seed: int | None = None,
    run: str | Path | None = None,
    observers: Sequence[Observer] = (),
    accelerator: Accelerator | None = None,
    progress: bool | None = None,
) -> Joint:
    """Train one denoiser for all conditionals of parameters and data.

    Parameters, data and samples are float32, or float64 where that would lose what a variable tells.

    Args:
        theta: parameters, (n, d).
        x: what was simulated from them, (n, *x_shape); its numbers are taken in a row.
        prior: as for `as_prior`; bounded parameters are mapped to R by it. None takes them as unbounded.
        network: takes conditions of shape (2 · variables,): values and flags.
        masks: which conditionals are trained, and how often.
        objective: p(σ), λ(σ), in units of the standard deviation.
        options: how to train; None means a rule: 100 passes over the simulations, but from 300,000 to 3 million samples
            in all, in batches of 256, with a warm-up and a half cosine to zero, and the average with the lowest
            validation loss. A twentieth of the simulations, at most 1000 (the first ones), is held out for that.
        sampler, density: how samples are drawn and log-densities computed afterwards.
        names: of all variables, θ first; None means the prior's or theta_1, …, then x_1, ….
        seed: the result is a function of this number; None means that of `options`.
        run: folder for checkpoints; None writes none. A run that has some is resumed.
        observers: of the training.
        accelerator: devices and processes.
        progress: as for `Trainer.fit`: None shows a bar in a terminal or notebook.

    Raises:
        TypeError, ValueError: the numbers of rows differ, a value is not finite or outside the prior's support, or a
            variable is constant; names the rows or variables.
    """
    prior = as_prior(prior)
    parameters, values = check_simulations(theta, x, prior, at_least=2, dtype=torch.float64)
    variables = torch.cat([parameters, values.flatten(1)], 1)
    dim, data = parameters.shape[1], values[0].numel()
    labels = _names(dim, data, prior, names)
    constant = [labels[i] for i in constant_columns(variables)]
    if constant:
        raise ValueError(f"every variable must vary, but {', '.join(constant)} did not: leave them out")
    known = Bijection.unbounded(dim) if prior is None else prior.bijection
    support = Bijection((*known.low, *(-math.inf,) * data), (*known.high, *(math.inf,) * data))
    precise = as_precise_as_needed(variables).dtype == torch.float64
    coordinates = Coordinates.fitted(variables, support, [prior is None] * dim + [True] * data, precise=precise)
    options = _default_options(len(parameters)) if options is None else options
    options = options if seed is None else replace(options, seed=seed)
    vectors = coordinates.forward(variables).float()
    total, apart = vectors.shape[1], max(1, min(len(vectors) // 20, 1000))
    model = JointModel(network=network, event_shape=(total,), condition_shape=(2 * total,))
    trainer = Trainer(
        model,
        MaskedData(vectors[apart:], dim, masks),
        objective,
        options,
        run=run,
        validation=MaskedData(vectors[:apart], dim, masks, seed=options.seed),
        observers=observers,
        accelerator=accelerator,
    )
    if run is not None and list_checkpoints(Path(run)):
        trainer.resume()
    denoiser = trainer.fit(progress=progress)
    return Joint(
        denoiser, model, coordinates, dim, values.shape[1:], prior=prior, names=labels, sampler=sampler, density=density
    )


KINDS: dict[str, type[DenoiserPosterior] | type[Joint]] = {trained.KIND: DenoiserPosterior, KIND: Joint}


def save(posterior: DenoiserPosterior | Joint, path: str | Path) -> None:
    """Write a posterior to a new folder: the same as its own `save`."""
    posterior.save(path)


def load(path: str | Path, device: torch.device | str = "cpu") -> DenoiserPosterior | Joint:
    """The posterior, or joint distribution, that was saved there, in evaluation mode.

    Args:
        path: the folder.
        device: where it computes.

    Raises:
        ValueError: no posterior there, an unknown format or kind, a damaged file, or weights that do not fit the
            description; names the file.
    """
    stored = storage.read(path)
    if stored.kind not in KINDS:
        raise ValueError(f"{path}: kind must be one of {', '.join(map(repr, KINDS))}, got {stored.kind!r}")
    return KINDS[stored.kind].from_stored(stored, device)


def _default_options(simulations: int) -> Options:
    images = min(max(100 * simulations, 300_000), 3_000_000)
    return Options(
        images=images,
        batch_size=256,
        learning_rate=3e-3,
        rampup=images // 20,
        schedule="cosine",
        average=HalfLife(half_life=images / 20, ramp=0.1),
        clip_norm=5.0,
        validate_every=images // 20,
        validate_samples=1000,
        validate_tails=False,
        keep_best=True,
        snapshot_every=0,
        checkpoint_every=images // 10,
    )


def _names(dim: int, data: int, prior: Prior | None, names: Sequence[str] | None) -> tuple[str, ...]:
    if names is None:
        own = None if prior is None else prior.names
        theta = tuple(own) if own else tuple(f"theta_{i + 1}" for i in range(dim))
        names = (*theta, *(f"x_{i + 1}" for i in range(data)))
    if len(names) != dim + data or len(set(names)) != len(names):
        raise ValueError(f"names must be {dim + data} different names, θ first, got {list(names)}")
    return tuple(names)
