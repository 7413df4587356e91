"""Weight files as they lie on disk, without a model and without torch."""
