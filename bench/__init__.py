"""What the service must reach, measured against the embedded directory and a bare loop or pool over requests."""
