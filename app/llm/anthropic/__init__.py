"""The native client for Anthropic's Messages API, and for servers that speak it.

One responsibility: say a `ModelRequest` in that API's words, and read its answers.
May import `app.engine` and its siblings in `app.llm`.
"""
