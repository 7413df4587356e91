"""pared makes trained PyTorch models smaller: a REST service, a client and a compression library."""

from pared.client import AsyncClient, Client, Job, JobFailed

__all__ = ["AsyncClient", "Client", "Job", "JobFailed", "__version__"]
__version__ = "0.1.0"
