"""What a board tells of itself: system files and tools, and what changes while frames are timed.

A new sensor is a class in `sensors`, named in its tuple SENSORS.
"""
