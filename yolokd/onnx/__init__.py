"""The exported file: written, proven to compute the same, quantized, profiled, bundled for a board."""
