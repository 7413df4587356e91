"""Specs for tests of the state, which never runs them."""

from pared.specs import PruneSpec

MODEL_ID = "mdl_" + "0" * 26
PRUNE = PruneSpec(type="prune", model=MODEL_ID, amount=0.5)
