"""Posteriors that are fitted in two seconds, far from well."""

from openedm.inference import tasks
from openedm.inference.fitting import fit
from openedm.inference.refine import Refinement
from openedm.inference.settings import MixtureOptions, Settings
from openedm.inference.trained import DenoiserPosterior
from openedm.networks import ConditionalEnsemble, ConditionalMLP, VectorSummary

TINY = Settings(
    network=ConditionalEnsemble(members=2, width=8, num_blocks=1),
    drawn_network=ConditionalMLP(width=8, num_blocks=1, summary=VectorSummary(width=8, num_blocks=1)),
    members=2,
    images=2048,
    passes=2,
    batch_size=256,
    emulator=MixtureOptions(members=2, components=(2,), width=8, num_blocks=1, steps=20, pilot_steps=5, folds=2),
    pool=1000,
    bases=("Gaussian",),
    base=MixtureOptions(members=1, components=(1,), width=8, num_blocks=1, steps=20, folds=2),
    refinement=Refinement(num_steps=4, num_pilots=16),
    judged=5,
)


def tiny_posterior(task: str) -> DenoiserPosterior:
    """Of a benchmark task, from 400 simulations."""
    known = tasks.get(task)
    theta = known.prior.sample(400, seed=1)
    return fit(theta, known.simulate(theta, seed=2), known.prior, settings=TINY)
