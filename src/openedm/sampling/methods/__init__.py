"""Solvers, one page a family, each as in its paper."""
