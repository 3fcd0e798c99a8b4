"""The training itself: Ultralytics' trainer with the student wrapped, teachers, and what they teach."""
