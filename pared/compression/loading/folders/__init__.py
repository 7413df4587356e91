"""Opens Hugging Face model folders: read from their zip, built by transformers without any code of theirs, traced."""
