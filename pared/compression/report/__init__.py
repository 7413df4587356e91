"""The parts of a report, and the sentences that sum it up."""
