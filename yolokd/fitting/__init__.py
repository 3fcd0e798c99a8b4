"""A student for a latency budget: its width, depth and image size are searched for, and the best is trained."""
