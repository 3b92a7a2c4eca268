"""Programmes that cross all floors: sweeps, models, kills, crowds, planted defects."""
