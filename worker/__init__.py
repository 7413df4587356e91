"""The worker: a Celery process that runs one job at a time, each in a confined child process."""
