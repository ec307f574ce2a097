"""Self-distillation of networks (Section 5): images, views, models, training and chains.

The names are those of ``__init__.pyi``. Each is imported when it is asked for: the command line knows
:class:`Config` without waiting for torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
