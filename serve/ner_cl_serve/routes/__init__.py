"""What is at which path, a subject a module."""
