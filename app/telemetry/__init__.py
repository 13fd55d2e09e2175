"""What the service tells about itself; logs and metrics.

May import: nothing of the project.
"""
