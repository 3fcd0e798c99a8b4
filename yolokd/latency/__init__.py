"""Latency reports: their schema, the gate between two, fronts of accuracy against cost, pictures."""
