"""`openedm inference …`: posteriors of a simulator's parameters. One sub-command a file."""

COMMANDS = {
    "simulate": "draw parameters from a prior and run a simulator, into a store",
    "fit": "fit a posterior to simulations",
    "sample": "draw samples from a posterior, given observations",
    "log_prob": "compute log-densities of parameters under a posterior",
    "map": "find the mode of a posterior",
    "check": "say whether to trust a posterior at one observation",
    "calibrate": "test a posterior by SBC and TARP on simulations that were not fitted",
    "benchmark": "simulate, fit, sample and score on the benchmark tasks of sbibm",
}
