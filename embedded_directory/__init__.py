"""An embedded Hospital Directory: a real HTTP server that answers as the deployed directory does.

``python -m embedded_directory`` starts it. It keeps its hospitals in memory, takes its five seconds a create,
enforces the same limits, and can be told to fail in every way a directory can fail.
"""
