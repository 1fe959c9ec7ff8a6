"""Figures: functions from numbers to matplotlib `Figure`s. They show nothing, write nothing, set nothing global.

Names, and matplotlib with them, are loaded when they are first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the names are in __init__.pyi
