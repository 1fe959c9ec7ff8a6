# What `import openedm` offers, read by type checkers and, when a name is first used, by lazy_loader.
from . import (
    comparing as comparing,
    conditioning as conditioning,
    data as data,
    denoiser as denoiser,
    exact as exact,
    exploring as exploring,
    generation as generation,
    guidance as guidance,
    inference as inference,
    interop as interop,
    levels as levels,
    likelihood as likelihood,
    measurements as measurements,
    metrics as metrics,
    networks as networks,
    objective as objective,
    plots as plots,
    preconditioning as preconditioning,
    sampling as sampling,
    schedules as schedules,
    suggest as suggest,
    training as training,
)
from .denoiser import Denoiser as Denoiser, FunctionDenoiser as FunctionDenoiser, Preconditioned as Preconditioned
from .exact import ExactDataset as ExactDataset, GaussianMixture as GaussianMixture
from .guidance import ClassifierFree as ClassifierFree, Guided as Guided
from .inference import Box as Box, fit as fit, simulate as simulate
from .levels import Karras as Karras
from .likelihood import log_prob as log_prob
from .metrics import evaluate as evaluate
from .networks import ADM as ADM, MLP as MLP, DDPMpp as DDPMpp, NCSNpp as NCSNpp
from .objective import Objective as Objective
from .sampling import Auto as Auto, Churn as Churn, Euler as Euler, Heun as Heun, Sampler as Sampler
from .training import Model as Model, Options as Options, Trainer as Trainer, load_denoiser as load_denoiser

__version__: str
