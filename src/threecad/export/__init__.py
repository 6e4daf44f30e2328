"""From a run to a bundle: the trained detector as one file for a backend, proved against the original."""
