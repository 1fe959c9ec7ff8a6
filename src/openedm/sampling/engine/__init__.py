"""How runs are computed. Private, but for `plan`, which a new solver on fixed levels is written with."""
