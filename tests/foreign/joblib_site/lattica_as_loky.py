"""Our backend under the name of joblib's default one, with the number of jobs that this one has where nobody says."""

from lattica.util.joblib.backend import LatticaBackend


class LokyBackend(LatticaBackend):
    default_n_jobs = 1
