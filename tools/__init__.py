"""What the project's own files are made with. Not installed."""
