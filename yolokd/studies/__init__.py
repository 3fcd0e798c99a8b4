"""Trainings compared: arms times seeds, each in a process of its own, and what a step costs."""
