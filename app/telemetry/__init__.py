"""What the service tells about itself; logs for now.

May import: nothing of the project.
"""
