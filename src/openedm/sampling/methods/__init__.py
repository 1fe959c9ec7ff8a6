"""Solvers, one module a family, each as in its paper."""
