"""What the service tells about itself; logs, metrics, traces.

May import: nothing of the project.
"""
