"""From an uploaded data set to checked tensors in three splits, and to batches."""

from pared.compression.data.loading import inspect_dataset, load_dataset
from pared.compression.data.samples import Data

__all__ = ["Data", "inspect_dataset", "load_dataset"]
