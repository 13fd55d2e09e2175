"""agent-runner: an HTTP service that runs LLM agents and loses nothing.

The names below are the public Python surface; everything else is reached over HTTP.
"""
