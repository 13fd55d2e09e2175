"""The JSON of requests and answers: a file per resource.

Requests are validated by their models. Answers are put together by hand from our own records, which need no
validation; their models exist for the OpenAPI document, and the tests hold the answers against it.
"""
