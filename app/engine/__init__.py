"""The functional core: what a run is and what it does next, as pure data and pure functions.

No clock, no id source, no network and no database: times and identifiers are arguments. Imports nothing of `app`
but `app.telemetry`; everything else in the project imports this package.
"""
