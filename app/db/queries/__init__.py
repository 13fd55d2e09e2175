"""Questions to the database, a file per group of tables, as SQLAlchemy statements on the ORM models.

Each takes the caller's session and never commits: whoever opened the transaction decides what belongs
together.
"""
