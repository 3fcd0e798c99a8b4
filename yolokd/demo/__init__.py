"""The demo: composed scenes, a trained teacher, a small student."""
