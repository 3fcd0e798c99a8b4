"""HTML reports of trainings, studies, demos and measurements, and what they say in one paragraph."""
