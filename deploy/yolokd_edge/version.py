"""The version of the runtime and of yolokd: written here and nowhere else."""

VERSION = "0.1.0"
