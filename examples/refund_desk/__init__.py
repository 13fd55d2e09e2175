"""Agents that share a job: two look things up, one decides, and a person approves what costs money."""
