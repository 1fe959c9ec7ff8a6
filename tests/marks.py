"""Marks that several tests share."""

import pytest

FAR_APART = pytest.mark.filterwarnings("ignore:.* is unstable with:UserWarning")
"""Of few levels with much noise, which no one should use but which obey the same laws."""
