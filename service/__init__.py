"""The API process: it validates, stores, queues and answers, and never opens a model."""
