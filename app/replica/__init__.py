"""One replica: its parts, wired, started and stopped together.

May import everything but `app.main`, `app.cli` and `app.runner`. Nothing below it knows the settings.
"""
