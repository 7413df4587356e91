"""Works on TorchScript graphs as a whole: follows what is computed from what, rebuilds modules around a graph."""
