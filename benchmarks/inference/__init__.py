"""Posterior estimation compared with that of peer libraries, each in an environment of its own."""
