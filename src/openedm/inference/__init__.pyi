# What `openedm.inference` offers, read by type checkers and, when a name is first used, by lazy_loader.
from . import tasks as tasks
from .assessing import Assessment as Assessment
from .bijections import Bijection as Bijection
from .calibration import Calibration as Calibration, calibrate as calibrate
from .composite import (
    Independent as Independent,
    Truncated as Truncated,
    as_prior as as_prior,
    prior_from_config as prior_from_config,
    prior_to_config as prior_to_config,
)
from .export import to_arviz as to_arviz
from .fitting import fit as fit
from .joint import Joint as Joint, fit_joint as fit_joint, load as load, save as save
from .columns import Columns as Columns
from .local_checks import (
    LocalTest as LocalTest,
    PredictiveCheck as PredictiveCheck,
    local_c2st as local_c2st,
    predictive_check as predictive_check,
)
from .maps import DataMap as DataMap, ParameterMap as ParameterMap
from .masks import Masks as Masks
from .own_priors import OwnPrior as OwnPrior, ScipyPrior as ScipyPrior
from .posterior import Posterior as Posterior
from .priors import (
    Box as Box,
    LogNormal as LogNormal,
    Normal as Normal,
    Prior as Prior,
    TorchPrior as TorchPrior,
)
from .refine import Refinement as Refinement
from .sequential import Round as Round, fit_sequentially as fit_sequentially
from .settings import MixtureOptions as MixtureOptions, Settings as Settings
from .simulation import simulate as simulate
from .simulations import Failure as Failure, Simulations as Simulations, Store as Store
from .trained import DenoiserPosterior as DenoiserPosterior, Parts as Parts
