"""Reference vectors: the numbers of the released code, compared with ours.

A directory holds ``manifest.json`` and one ``.npz`` a case: inputs, weights,
every random decision, outputs, gradients. Each method has a module here with
a function ``run(case)`` that builds the model from the manifest alone,
converts the official weights with this project's own converter, replays the
case and yields one :class:`Comparison` for each stored quantity.
"""

from .cases import Case, load_cases
from .compare import Comparison
from .runner import CaseResult, run_directory

__all__ = [
    'Case',
    'CaseResult',
    'Comparison',
    'load_cases',
    'run_directory',
]
