"""In each process that joblib's tests start, workers too: lattica in the place of joblib's default backend.

Workers get the key of this program's multiprocessing managers, which children of it have.
"""

import multiprocessing
import os

import joblib._parallel_backends
import joblib.parallel
from lattica_as_loky import LokyBackend

joblib._parallel_backends.LokyBackend = LokyBackend  # what the tests import; joblib itself knows loky by its own
joblib.parallel.BACKENDS["loky"] = LokyBackend
if "FOREIGN_AUTHKEY" in os.environ:
    multiprocessing.current_process().authkey = bytes.fromhex(os.environ["FOREIGN_AUTHKEY"])
