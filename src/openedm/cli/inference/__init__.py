"""`openedm inference …`: posteriors of a simulator's parameters. One sub-command a file."""

COMMANDS = {
    "benchmark": "simulate, fit, sample and score on the benchmark tasks of sbibm",
}
