"""Simulation-based inference: p(θ|x) from simulations."""
