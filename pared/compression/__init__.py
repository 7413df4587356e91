"""The compression library: torch only, works without the service."""
