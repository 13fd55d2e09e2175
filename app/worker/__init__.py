"""Executes runs: claims them, drives each through decide, perform and commit, and lets go of what it has lost.

May import `app.services` and what lies below it. One asyncio task for each run that is under way; a run that is queued,
paused or waiting has none.
"""
