"""Model files as people hold them: each module lists those of one kind, `tests/e2e/test_files.py` tries them all."""
