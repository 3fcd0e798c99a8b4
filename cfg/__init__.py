"""Recipes: which methods, with which gains. A recipe never repeats a method's own defaults."""
