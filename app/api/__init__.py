"""HTTP: what a request means to the services, and what their answers look like outside.

May import `app.services` and `app.engine`. HTTP's status codes exist nowhere else.
"""

from app.api.application import build_api

__all__ = ["build_api"]
