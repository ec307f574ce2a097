"""A cluster of dask on this machine, for the tests that need one."""

from __future__ import annotations

from contextlib import contextmanager


@contextmanager
def local_cluster(workers, **options):
    """The active client of `workers` processes of one thread each.

    The dashboard listens on a free port: its usual one (which `dashboard_address=None` means too)
    is one for the whole machine, and where tests run side by side the second to ask for it fails.
    """
    import distributed

    how = {"threads_per_worker": 1, "processes": True, "dashboard_address": "127.0.0.1:0"}
    with (
        distributed.LocalCluster(n_workers=workers, **how, **options) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client
