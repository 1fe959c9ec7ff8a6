"""The computation of a sampling run. Private, except `plan`, with which a new solver on fixed levels is written."""
